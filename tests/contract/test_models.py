"""A server that watches its repository: what callers see of models that come, change and go."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fcn_client.stubs import segmentation_pb2 as pb
from tests.drawing import png, read_png
from tests.serving import Server, running
from tests.tiny_models import write_model
from tests.waiting import until

POLL_S = 0.1
IMAGE = png(np.full((6, 8, 3), 100, np.uint8))
RED, GREEN, BLUE = ((300, 0, 0), (0, 300, 0), (0, 0, 300))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("watched")
    write_model(folder, "tiny", 1, bias=RED)
    (folder / "aliases.toml").write_text('street = "tiny"\nstable = "tiny/1"\n')
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with running(repository, default_model="tiny", model_poll_s=POLL_S) as server:
        yield server


def label(client: httpx.Client, model: str | None = None) -> int:
    """The class every pixel has. Raises: httpx.HTTPStatusError."""
    answer = client.post(
        "/segment",
        params={"model": model} if model else {},
        content=IMAGE,
        headers={"content-type": "image/png"},
    ).raise_for_status()
    return int(read_png(answer.content)[0, 0])


def answered(client: httpx.Client, expected: int) -> bool:
    return label(client) == expected


def listed(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = server.rest.get(f"/v1/models/{name}").raise_for_status().json()
    return found


def test_models_are_replaced_under_load_without_one_failed_request(
    server: Server, repository: Path
) -> None:
    over = threading.Event()

    def call() -> list[int]:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            labels = []
            while not over.is_set():
                labels.append(label(client))
            return labels

    with ThreadPoolExecutor(3) as callers:
        calls = [callers.submit(call) for _ in range(3)]
        try:
            for bias, expected in ((GREEN, 1), (BLUE, 2)):
                incoming = write_model(repository / ".incoming", "tiny", 2, bias=bias)
                target = repository / "tiny" / "2" / "model.onnx"
                target.parent.mkdir(exist_ok=True)
                incoming.replace(target)
                until(partial(answered, server.rest, expected))
        finally:
            over.set()
        answers = [labels for done in calls for labels in done.result()]
    assert set(answers) == {0, 1, 2}
    assert len(answers) >= 10
    labels = 'engine="onnxruntime",model="tiny",precision="fp32",provider="cpu",version="2"'
    assert server.metric(f"fcn_model_info{{{labels}}}") == 1


def test_a_broken_version_is_told_of_and_takes_nothing_down(
    server: Server, repository: Path
) -> None:
    path = repository / "tiny" / "9" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(b"not a model")
    until(lambda: listed(server, "tiny")["versions"][-1]["state"] == "failed")
    broken = listed(server, "tiny")["versions"][-1]
    assert broken["version"] == "9"
    assert broken["reason"].startswith("tiny/9/model.onnx cannot be loaded as an ONNX model")
    assert "contract" not in broken
    assert listed(server, "tiny")["default_version"] != "9"
    assert server.rest.get("/readyz").status_code == 200
    assert label(server.rest) in {0, 2}
    until(lambda: "model tiny version 9 failed to load" in server.log(), server.log)
    # gRPC lists what serves.
    models = server.stub.ListModels(pb.ListModelsRequest(), timeout=30).models
    assert "9" not in {m.version for m in models}
    shutil.rmtree(path.parent)
    until(lambda: listed(server, "tiny")["versions"][-1]["version"] != "9")


def test_a_model_that_never_served_is_listed_with_its_reason(
    server: Server, repository: Path
) -> None:
    path = repository / "broken" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a model")
    until(lambda: server.rest.get("/v1/models/broken").status_code == 200)
    until(lambda: listed(server, "broken")["versions"][0]["state"] == "failed")
    broken = listed(server, "broken")
    assert broken["default_version"] is None
    assert not broken["is_default"]
    assert server.rest.get("/readyz").status_code == 200
    shutil.rmtree(repository / "broken")
    until(lambda: server.rest.get("/v1/models/broken").status_code == 404)


def test_an_alias_answers_and_counts_as_its_model(server: Server) -> None:
    assert label(server.rest, "stable") == 0
    aliases = [{"name": "stable", "version": "1"}, {"name": "street", "version": None}]
    assert listed(server, "street")["aliases"] == aliases
    assert listed(server, "street")["name"] == "tiny"
    assert 'model="stable"' not in server.rest.get("/metrics").text
    reply = server.stub.Segment(pb.SegmentRequest(image=IMAGE, model="stable"), timeout=30)
    assert (reply.model, reply.version) == ("tiny", "1")
