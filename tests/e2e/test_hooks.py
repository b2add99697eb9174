"""Hooks: the example of docs/hooks.md with a real server, and what becomes of one that fails."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.main import main
from fcn_client import FcnClient, HookFailed
from service.api.oip.infer import segment_all
from service.config import SegmenterConfig
from service.core.segmenter import Segmenter
from service.core.types import Client, SegmentOptions, UInt8Array
from service.errors import HookFailed as Failed
from service.errors import ModelLoadError, StartError
from service.hooks import GROUP, Hook, HookContext, Hooks, load_hooks
from tests.contract.oip import Request
from tests.drawing import png, read_png, street
from tests.serving import ROOT, Server, fail_to_start, running
from tests.tiny_models import CLASSES, contract, expected_label_map, write_model

EXAMPLE = ROOT / "docs" / "examples" / "hooks"
RGB = street(40, 56)
RED, GREEN, BLUE = range(3)


# The example


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example package in it, as `pip install` leaves it."""
    source: Path = tmp_path_factory.mktemp("source")
    for file in EXAMPLE.iterdir():  # a build leaves its folders beside the package
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    folder: Path = tmp_path_factory.mktemp("installed")
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", "pip", *words, "--target", str(folder), str(source)], check=True
    )
    return folder


@pytest.fixture(scope="module")
def server(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("models")
    write_model(repository, logits=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(example))
        with running(repository, hooks="lower-half,merge,colors,alert") as server:
            yield server


def halved(rgb: UInt8Array) -> UInt8Array:
    labels = expected_label_map(rgb)
    labels[: len(labels) // 2] = 255
    return labels


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_the_example_changes_answers(server: Server, transport: str) -> None:
    with FcnClient(server.url if transport == "rest" else f"grpc://{server.target}") as client:
        np.testing.assert_array_equal(client.segment(RGB).value, halved(RGB))
        overlay = client.segment(RGB, "overlay", alpha=0.0).value
        assert (overlay[:20] == 0).all(), "it is drawn over what the hook made"
        np.testing.assert_array_equal(overlay[20:], RGB[20:])
        report = client.segment(RGB, "json").value
    assert sum(found["pixels"] for found in report["classes"]) == 20 * 56


def test_the_example_changes_tensors(server: Server) -> None:
    images = np.stack([street(40, 56, seed=n) for n in range(3)])
    reply = Request(shape=images.shape, data=images.tobytes()).post(server.rest)
    assert reply.status_code == 200
    head = int(reply.headers["Inference-Header-Content-Length"])
    labels = np.frombuffer(reply.content[head:], np.uint8).reshape(3, 40, 56)
    np.testing.assert_array_equal(labels, np.stack([halved(image) for image in images]))


def test_the_check_names_the_hooks(
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_model(tmp_path)
    monkeypatch.syspath_prepend(str(example))
    words = ["serve", "--check", "--model-repository", str(tmp_path)]
    words += ["--http-port", "0", "--grpc-port", "0"]
    assert main([*words, "--hooks", "merge,alert"]) == 0
    assert "merge, alert can be made" in capsys.readouterr().out
    assert main([*words, "--hooks", "merge,none"]) == 1
    assert "FCN_HOOKS names 'none'" in capsys.readouterr().out


def test_each_hook_of_the_example_does_what_it_says(
    example: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(str(example))
    names = ("road", "car", "pedestrian", "bicyclist")
    classes = tuple(replace(CLASSES[0], id=n, name=name) for n, name in enumerate(names))
    context = HookContext("street", "1", classes, "job-7")
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "street_hooks", raising=False)
        import street_hooks  # type: ignore[import-not-found]
    found = street_hooks.Merge().after(np.array([[0, 2, 3]], np.uint8), context)
    assert found.tolist() == [[0, 2, 2]]
    palette = street_hooks.Colors().palette(np.zeros((256, 3), np.uint8), context)
    assert palette[0].tolist() == [255, 220, 0] and not palette[1:].any()
    for cars, warned in ((1, 0), (2, 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "street_hooks"):
            street_hooks.Alert().after(np.array([[1] * cars + [0] * (4 - cars)], np.uint8), context)
        assert len(caplog.records) == warned
    assert "request job-7: 50 % of the image are cars" in caplog.text


# Those that fail


class Bad(Hook):
    """Fails on an image whose first pixel is red: as its second value says."""

    def before(self, image: UInt8Array, context: HookContext) -> Any:
        kind = image[0, 0, 1] if image[0, 0, 0] == 255 else 0
        if kind == 1:
            raise ValueError("a secret")
        if kind == 2:
            sys.exit(3)
        return {3: image[:-1], 4: image.astype(float), 5: None}.get(int(kind), image)

    def after(self, label_map: UInt8Array, context: HookContext) -> UInt8Array:
        if context.request_id == "fail-after":
            raise KeyError("a secret")
        return label_map + 9 if context.request_id == "no-class" else label_map


def image_for(kind: int) -> UInt8Array:
    rgb = RGB.copy()
    rgb[0, 0] = 255, kind, 0
    return rgb


class Named(Client):
    __slots__ = ("_id",)

    def __init__(self, id: str) -> None:
        self._id = id

    @property
    def id(self) -> str:
        return self._id


def offer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, **hooks: str) -> None:
    """Installs a package whose hooks these are, each `module:attribute`."""
    info = tmp_path / "site" / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    points = "\n".join(f"{name} = {value}" for name, value in hooks.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")
    monkeypatch.syspath_prepend(str(info.parent))


async def started(repository: Path, hooks: str) -> Segmenter:
    segmenter = Segmenter(
        SegmenterConfig(
            model_repository=repository, provider="cpu", intra_op_threads=1, hooks=hooks
        )
    )
    await segmenter.start()
    return segmenter


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A repository; the hooks of this file are offered."""
    monkeypatch.setitem(sys.modules, "hooks_of_the_test", sys.modules[__name__])
    module = "hooks_of_the_test"
    offer(monkeypatch, tmp_path, "own", bad=f"{module}:Bad", still=f"{module}:Still",
          gray=f"{module}:Gray", pink=f"{module}:Pink", broken=f"{module}:Broken",
          other=f"{module}:RGB", missing=f"{module}:Missing")  # fmt: skip
    write_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5])
async def test_a_hook_that_fails_fails_its_image_alone(
    own: Path, kind: int, caplog: pytest.LogCaptureFixture
) -> None:
    segmenter = await started(own, "bad")
    try:
        with pytest.raises(Failed, match="the hook 'bad'") as caught:
            await segmenter.segment(png(image_for(kind)), SegmentOptions())
        assert "secret" not in str(caught.value)
        assert any("hook bad" in record.getMessage() for record in caplog.records)
        reply = await segmenter.segment(png(RGB), SegmentOptions())
        np.testing.assert_array_equal(reply.label_map, expected_label_map(RGB))
    finally:
        await segmenter.aclose()


@pytest.mark.parametrize("id", ["fail-after", "no-class"])
async def test_a_hook_that_fails_after_the_network(own: Path, id: str) -> None:
    segmenter = await started(own, "bad")
    try:
        for output in ("label_map", "json", None):
            options = SegmentOptions(output=output)
            with pytest.raises(Failed, match="the hook 'bad'"):
                await segmenter.segment(png(RGB), options, Named(id))
        assert (await segmenter.segment(png(RGB), SegmentOptions())).body
    finally:
        await segmenter.aclose()


def test_the_caller_is_told_the_hooks_name(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "hooks_of_the_test.py").write_text(
        "from service.hooks import Hook\n"
        "class Bad(Hook):\n"
        "    def before(self, image, context):\n"
        "        raise ValueError('a secret')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    with running(own, hooks="bad") as server:
        for url in (server.url, f"grpc://{server.target}"):
            with FcnClient(url) as client, pytest.raises(HookFailed, match="'bad'") as caught:
                client.segment(RGB, request_id="job-7")
            assert caught.value.status == 500 and "secret" not in str(caught.value)
        answer = server.rest.post("/segment", content=png(RGB))
        assert answer.json()["type"] == "urn:fcn:problem:hook-failed"
        assert server.rest.get("/readyz").status_code == 200
        log = server.log()
    assert "hook bad failed, request job-7" in log and "a secret" in log


# What hooks see


class Still(Hook):
    """Looks, and changes what it was given in place."""

    seen: list[tuple[int, ...]] = []

    def before(self, image: UInt8Array, context: HookContext) -> UInt8Array:
        self.seen.append(image.shape)
        image[:] = 0
        return np.asarray(image[:, ::-1])


class Gray(Hook):
    def after(self, label_map: UInt8Array, context: HookContext) -> UInt8Array:
        return np.full_like(label_map, GREEN)


class Pink(Hook):
    def palette(self, palette: UInt8Array, context: HookContext) -> UInt8Array:
        assert (context.model, context.version, context.request_id) == ("tiny", "1", "")
        palette[RED] = 255, 0, 255
        return palette


class Broken(Hook):
    def palette(self, palette: UInt8Array, context: HookContext) -> UInt8Array:
        return palette[:3]


class Missing(Hook):
    def __init__(self) -> None:
        raise OSError("no licence")


async def test_a_hook_sees_the_whole_upload_once(own: Path) -> None:
    """Also where the network is shown less, and where an overlay needs all of it; what is the
    caller's stays as it is."""
    Still.seen.clear()
    segmenter = await started(own, "still")
    rgb = RGB.copy()
    try:
        for output in ("label_map", "overlay"):
            reply = await segmenter.segment(rgb, SegmentOptions(output=output, scale=14))
            assert reply.network_size == (10, 14) and reply.height == 40
            assert (reply.label_map == RED).all(), "of a black image"
    finally:
        await segmenter.aclose()
    assert Still.seen == [(40, 56, 3)] * 2
    np.testing.assert_array_equal(rgb, RGB)


async def test_colours_are_the_hooks(own: Path) -> None:
    segmenter = await started(own, "pink")
    try:
        black = np.zeros((4, 4, 3), np.uint8)
        reply = await segmenter.segment(black, SegmentOptions(output="color"))
        assert (read_png(reply.body) == (255, 0, 255)).all()
    finally:
        await segmenter.aclose()


async def test_several_run_in_their_order(own: Path) -> None:
    segmenter = await started(own, "bad,gray")
    try:
        replies = await segment_all(
            segmenter, [RGB, RGB], SegmentOptions(output=None), ["label_map"],
            max_pixels=10**6, as_numbers=False,
        )  # fmt: skip
        assert all((reply.label_map == GREEN).all() for reply in replies)
    finally:
        await segmenter.aclose()


async def test_a_palette_that_is_none_is_a_model_that_cannot_be_loaded(own: Path) -> None:
    with pytest.raises(ModelLoadError, match="the hook 'broken'"):
        await started(own, "broken")


def test_methods_that_are_not_written_cost_nothing() -> None:
    hooks = Hooks([("gray", Gray()), ("none", Hook())])
    model = type("Loaded", (), {"name": "tiny", "version": "1", "contract": contract()})()
    request = hooks.of(model, "job-7")
    assert not request.reads_image and request.changes_labels

    def plain(reduction: int) -> tuple[UInt8Array, tuple[int, int]]:
        return RGB, (40, 56)

    assert request.pixels(plain, keep=True) is plain
    labels = np.zeros((2, 2), np.uint8)
    assert Hooks([("none", Hook())]).of(model, "").after(labels) is labels
    assert load_hooks("") is None


# The start


def test_a_hook_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    write_model(tmp_path)
    code, out, error = fail_to_start(
        model_repository=tmp_path, hooks="none", http_port=0, grpc_port=0
    )
    assert code == 1 and not out
    assert "FCN_HOOKS names 'none'" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none", "choose of those there are: .*bad"),
        ("missing", "the hook 'missing' of own cannot be made: OSError: no licence"),
        ("other", "cannot be made: TypeError"),
    ],
)
def test_what_cannot_be_made_is_said(own: Path, name: str, says: str) -> None:
    with pytest.raises(StartError, match=says):
        load_hooks(f"bad,{name}")


def test_what_is_no_hook_or_is_offered_twice(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, tmp_path / "more", "more", bad="hooks_of_the_test:Bad", dict="builtins:dict")
    with pytest.raises(StartError, match="which is a hook of more and own|of own and more"):
        load_hooks("bad")
    with pytest.raises(StartError, match="the hook 'dict' of more is no service.hooks.Hook"):
        load_hooks("dict")


def test_the_page_shows_the_example() -> None:
    page = (ROOT / "docs" / "hooks.md").read_text()
    package = (EXAMPLE / "pyproject.toml").read_text()
    for name in ("lower-half", "merge", "colors", "alert"):
        assert f"`{name}`" in page and f"\n{name} = " in package
    assert json.dumps("fcn.hooks") in package
