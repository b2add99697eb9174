"""The client with the real server, and docs/client.md: its snippets run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import fcn_client
from fcn_client import (
    FcnClient,
    ImageTooLarge,
    InvalidImage,
    InvalidInput,
    InvalidParameter,
    SegmentOptions,
    ServerError,
    UnknownVersion,
    UnsupportedImageFormat,
)
from fcn_client.types import ImageLike
from tests.drawing import jpeg, png, read_png, street
from tests.serving import ROOT, Server, environment
from tests.tiny_models import CLASSES, expected_label_map
from tests.unit.client.clients import EITHER, Awaited, Client, Threaded
from tests.unit.repository.pages import blocks

RGB = street(40, 56)
PAGE = ROOT / "docs" / "client.md"
SNIPPETS = [
    block.text for block in blocks(PAGE) if block.language == "python" and not block.skipped
]


def address(server: Server, transport: str) -> str:
    return {"rest": server.url, "grpc": f"grpc://{server.target}"}[transport]


@pytest.fixture(params=["rest", "grpc"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[Threaded, Awaited], ids=["threads", "asyncio"])
def client(
    server: Server, transport: str, request: pytest.FixtureRequest
) -> Iterator[Threaded | Awaited]:
    with request.param(address(server, transport)) as client:
        yield client


def test_label_map_and_what_comes_with_it(client: Threaded | Awaited) -> None:
    result = client.segment(RGB, version="1", request_id="job-7")
    np.testing.assert_array_equal(result.value, expected_label_map(RGB))
    assert (str(result.value.dtype), result.output) == ("uint8", "label_map")
    assert (result.model, result.version, result.request_id) == ("tiny", "1", "job-7")
    assert result.timings.decode_s > 0 and result.timings.infer_s > 0
    assert (result.media_type, result.attempts) == ("image/png", 1)


@pytest.mark.parametrize("output", ["color", "overlay", "label_map", "json"])
def test_outputs_and_options_are_those_of_the_api(
    server: Server, client: Threaded | Awaited, output: str
) -> None:
    options: SegmentOptions = {
        "version": "1",
        "alpha": 0.25,
        "classes": ["red", 2],
        "priority": "low",
        "deadline_ms": 20_000.4,
    }
    result: Any = client.segment(png(RGB), output, **options)
    raw = server.rest.post(
        f"/segment?version=1&alpha=0.25&classes=red,2&output={output}", content=png(RGB)
    )
    if output == "json":
        assert result.value["classes"] == raw.json()["classes"]
        assert {c["name"] for c in result.value["classes"]} == {"red", "blue"}
    else:
        assert result.body == raw.content
        np.testing.assert_array_equal(result.value, read_png(raw.content))


def test_errors_are_the_servers(client: Threaded | Awaited) -> None:
    for error, image, options in (
        (InvalidImage, png(RGB)[:200], {}),
        (ImageTooLarge, bytes(200_000), {}),
        (UnknownVersion, RGB, {"version": "9"}),
        (InvalidParameter, RGB, {"classes": "tree"}),
        (InvalidParameter, RGB, {"alpha": 2.0}),
    ):
        with pytest.raises(error) as raised:
            client.segment(image, request_id="job-8", **options)
        assert isinstance(raised.value, ServerError)
        assert raised.value.type.startswith("urn:fcn:problem:")
        assert raised.value.detail and 400 <= raised.value.status < 500
        assert raised.value.attempts == 1
    with pytest.raises((InvalidParameter, InvalidInput), match="output 'labels': use"):
        client.segment(RGB, "labels")


def test_models_and_readiness(client: Threaded | Awaited) -> None:
    assert client.ready()
    models = client.models()
    assert [(m.name, m.is_default, m.default_version) for m in models] == [
        ("other", False, "1"),
        ("tiny", True, "2"),
    ]
    assert [(c.id, c.name, c.color) for c in models[1].default.classes] == [
        (c.id, c.name, c.color) for c in CLASSES
    ]
    assert models[1].versions[0].state == "ready"


def test_models_are_the_same_over_both(server: Server) -> None:
    """With the whole contract."""
    with FcnClient(server.url) as rest, FcnClient(f"grpc://{server.target}") as rpc:
        assert rest.models() == rpc.models()


@pytest.mark.parametrize("ordered", [True, False])
def test_many_at_a_time_are_each_their_own(client: Threaded | Awaited, ordered: bool) -> None:
    images = [street(20, 30, seed=n) for n in range(12)]
    sent: list[ImageLike] = [*images, b"?"]
    outcomes = list(client.segment_many(sent, in_flight=4, ordered=ordered, version="1"))
    order = [outcome.index for outcome in outcomes]
    assert sorted(order) == list(range(13)) and (not ordered or order == sorted(order))
    for outcome in outcomes:
        if outcome.index == 12:
            assert isinstance(outcome.error, UnsupportedImageFormat)
        else:
            expected = expected_label_map(images[outcome.index])
            np.testing.assert_array_equal(outcome.unwrap().value, expected)


@pytest.mark.parametrize("ordered", [True, False])
@EITHER
def test_a_stream_is_the_same(server: Server, client_of: Client, ordered: bool) -> None:
    images = [street(20 + n, 30, seed=n) for n in range(40)]
    sent: list[ImageLike] = [*images, b"?"]
    with client_of(address(server, "grpc")) as client:
        outcomes = list(
            client.segment_stream(sent, window=64, ordered=ordered, version="1", request_id="film")
        )
        unknown = [o.error for o in client.segment_stream(images[:3], version="9")]
    assert [type(error) for error in unknown] == [UnknownVersion] * 3
    order = [outcome.index for outcome in outcomes]
    assert sorted(order) == list(range(41)) and (not ordered or order == sorted(order))
    for outcome in outcomes:
        if outcome.index == 40:
            assert isinstance(outcome.error, UnsupportedImageFormat)
            assert outcome.error.request_id == "film/40"
            continue
        result = outcome.unwrap()
        np.testing.assert_array_equal(result.value, expected_label_map(images[outcome.index]))
        assert (result.request_id, result.attempts) == (f"film/{outcome.index}", 1)
        assert (result.model, result.version) == ("tiny", "1") and result.timings.infer_s > 0


def test_every_option_of_the_api(server: Server, client: Threaded | Awaited) -> None:
    """Those that `test_outputs_...` leaves out."""
    drawn = client.segment(png(RGB), "overlay", version="1", outlines=True)
    plain = client.segment(png(RGB), "overlay", version="1", outlines=False)
    query = "/segment?version=1&output=overlay"
    for result, more in ((drawn, "&outlines=true"), (plain, "")):
        assert result.body == server.rest.post(query + more, content=png(RGB)).content
    half: Any = client.segment(png(RGB), "probabilities", version="1", dtype="float16").value
    assert (half.dtype, half.shape) == ("float16", (3, 40, 56))
    np.testing.assert_array_equal(half.argmax(0), expected_label_map(RGB))


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 7


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet(server: Server, tmp_path: Path, number: int) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg(street(30, 50)))
    text = SNIPPETS[number].replace("http://localhost:8000", server.url)
    done = subprocess.run(
        [sys.executable, "-c", text.replace("localhost:8001", server.target)],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    expected = (
        "(30, 50) tiny 2",
        "True (240, 320, 3)",
        "tiny",
        "1 no such file.jpg cannot be read",
        "(30, 50)",
        "1 Unsupported image format: the body is not an image",
    )
    assert (*expected, "404 urn:fcn:problem:unknown-model")[number] in done.stdout


def test_page_names_every_option_and_error() -> None:
    page = PAGE.read_text()
    for name in get_type_hints(SegmentOptions):
        assert f"`{name}`" in page
    for name in (
        "InvalidInput",
        "FcnConnectionError",
        "FcnTimeoutError",
        "DecodeError",
        "ServerError",
    ):
        assert f"| `{name}`" in page
    assert all(hasattr(fcn_client, name) for name in fcn_client.__all__)
