"""The whole path with a real ONNX file, and with a held device for what time and load do."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.contract import METADATA_KEY, Contract, InputSpec
from service.config import SegmenterConfig
from service.core.images.header import Header, read_header
from service.core.outputs import probabilities
from service.core.segmenter import Segmenter
from service.core.types import Dtype, Instance, ModelState, Score, SegmentOptions, SegmentReply
from service.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    InvalidParameter,
    ModelLoadError,
    ModelNotReady,
    Overloaded,
    ServiceError,
    ShuttingDown,
    UnknownModel,
    UnknownVersion,
    UnsupportedImageFormat,
)
from tests import drawing, tiny_models
from tests.conftest import need
from tests.drawing import read_png, street
from tests.tiny_models import expected_label_map, expected_logits, write_model
from tests.unit.core.fakes import POISON, WAIT_S, Device, Recorder, settle

RGB = street(23, 31)
PNG = drawing.png(RGB)
OPTIONS = SegmentOptions()


CPU = {"provider": "cpu", "intra_op_threads": 1}
_SEAMS = ("observer", "changed", "clock", "open_network")


def segmenter_of(repository: Path, **options: Any) -> Segmenter:
    """options: of the config, or one of the segmenter's seams."""
    seams = {name: options.pop(name) for name in _SEAMS if name in options}
    config = SegmenterConfig(model_repository=repository, **{**CPU, **options})
    return Segmenter(config, **seams)


@asynccontextmanager
async def serving(repository: Path, **options: Any) -> AsyncIterator[Segmenter]:
    segmenter = segmenter_of(repository, **options)
    await segmenter.start()
    try:
        yield segmenter
    finally:
        await segmenter.aclose()


@dataclass
class FakeNetwork:
    """A network on a device that a test holds; the label map is the red channel."""

    device: Device = field(default_factory=Device)
    contract: Contract = field(default_factory=tiny_models.contract)
    provider: str = "cpu"
    path: Path = Path("model.onnx")

    @property
    def instances(self) -> Sequence[Instance]:
        return (self.device,)

    def warm_up(self, sizes: Sequence[tuple[int, int]]) -> None:
        pass


@asynccontextmanager
async def on_device(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[Segmenter, Device]]:
    write_model(tmp_path)
    network = FakeNetwork()
    async with serving(
        tmp_path, open_network=lambda path: network, pool_workers=2, **options
    ) as segmenter:
        try:
            yield segmenter, network.device
        finally:
            network.device.release()


def send(
    segmenter: Segmenter, image: bytes = PNG, options: SegmentOptions = OPTIONS
) -> asyncio.Task[SegmentReply]:
    return asyncio.get_running_loop().create_task(segmenter.segment(image, options))


def red(value: int) -> bytes:
    return drawing.png(np.full((4, 4, 3), value, np.uint8))


# The answer


@pytest.mark.parametrize("size", [(1, 1), (23, 31), (1, 40), (64, 3)])
async def test_a_picture_gets_its_label_map(tmp_path: Path, size: tuple[int, int]) -> None:
    write_model(tmp_path)
    rgb = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    async with serving(tmp_path) as segmenter:
        reply = await segmenter.segment(drawing.png(rgb), OPTIONS)
    assert (read_png(reply.body) == expected_label_map(rgb)).all()
    assert (reply.height, reply.width) == size
    assert (reply.model, reply.version, reply.media_type) == ("tiny", "1", "image/png")
    assert reply.batch_size == 1
    times = reply.timings
    assert min(times.decode_s, times.queue_s, times.infer_s, times.render_s) > 0


async def test_images_share_their_options(tmp_path: Path) -> None:
    write_model(tmp_path)
    options = SegmentOptions(output="color")
    pictures = [street(9, 12), street(5, 7), RGB]
    async with serving(tmp_path) as segmenter:
        replies = await asyncio.gather(
            segmenter.segment(drawing.png(pictures[0]), options),
            segmenter.segment(drawing.png(pictures[1]), options),
            segmenter.segment(pictures[2], options),
        )
        with pytest.raises(InvalidImage, match="empty"):
            await segmenter.segment(b"", OPTIONS)
    for rgb, reply in zip(pictures, replies, strict=True):
        colours = tiny_models.contract().palette()[expected_label_map(rgb)]
        assert (read_png(reply.body) == colours).all()


async def test_the_label_map_has_the_uploads_upright_size(tmp_path: Path) -> None:
    write_model(tmp_path)
    tags = Image.Exif()
    tags[0x0112] = 6  # stored a quarter turn off
    body = drawing.encode(np.ascontiguousarray(np.rot90(RGB)), "PNG", exif=tags)
    async with serving(tmp_path) as segmenter:
        reply = await segmenter.segment(body, OPTIONS)
    assert (reply.height, reply.width) == RGB.shape[:2]
    assert (read_png(reply.body) == expected_label_map(RGB)).all()


async def test_padding_for_the_model_is_undone(tmp_path: Path) -> None:
    contract = tiny_models.contract(input_spec=InputSpec(multiple_of_px=32, min_side_px=64))
    write_model(tmp_path, model_contract=contract)
    async with serving(tmp_path) as segmenter:
        reply = await segmenter.segment(PNG, OPTIONS)
        overlay = await segmenter.segment(PNG, replace(OPTIONS, output="overlay", alpha=0.0))
    assert (read_png(reply.body) == expected_label_map(RGB)).all()
    assert (read_png(overlay.body) == RGB).all()


async def test_color_and_overlay_show_the_classes(tmp_path: Path) -> None:
    write_model(tmp_path)
    colours = tiny_models.contract().palette()[expected_label_map(RGB)]
    async with serving(tmp_path) as segmenter:
        color = await segmenter.segment(PNG, replace(OPTIONS, output="color"))
        overlay = await segmenter.segment(PNG, replace(OPTIONS, output="overlay", alpha=1.0))
        half = await segmenter.segment(PNG, replace(OPTIONS, output="overlay"))
    assert (read_png(color.body) == colours).all()
    assert (read_png(overlay.body) == colours).all()
    mean = (RGB.astype(float) + colours) / 2
    assert np.abs(read_png(half.body) - mean).max() <= 1
    assert {color.media_type, overlay.media_type} == {"image/png"}


async def test_json_describes_the_picture(tmp_path: Path) -> None:
    write_model(tmp_path)
    async with serving(tmp_path) as segmenter:
        reply = await segmenter.segment(PNG, replace(OPTIONS, output="json"))
    assert reply.media_type == "application/json"
    body = json.loads(reply.body)
    counts = np.bincount(expected_label_map(RGB).ravel(), minlength=3)
    assert [c["pixels"] for c in body["classes"]] == counts.tolist()
    assert sum(c["share"] for c in body["classes"]) == pytest.approx(1)
    assert (body["height"], body["width"], body["model"], body["version"]) == (23, 31, "tiny", "1")
    assert set(body["timings_ms"]) == {"decode", "queue", "infer"}


async def test_only_the_classes_asked_for_are_kept(tmp_path: Path) -> None:
    write_model(tmp_path)
    right = expected_label_map(RGB)
    async with serving(tmp_path) as segmenter:

        async def ask(output: str) -> bytes:
            options = replace(OPTIONS, output=output, classes=("green", "2"), alpha=1.0)
            return (await segmenter.segment(PNG, options)).body

        wanted = ("label_map", "overlay", "color", "json")
        label_map, overlay, color, summary = [await ask(output) for output in wanted]
    assert (read_png(label_map) == np.where(right == 0, 255, right)).all()
    assert (read_png(overlay)[right == 0] == RGB[right == 0]).all()
    assert not read_png(color)[right == 0].any()
    assert [c["name"] for c in json.loads(summary)["classes"]] == ["green", "blue"]


@pytest.mark.parametrize("dtype", list(Dtype))
async def test_probabilities_come_with_a_model_that_has_logits(
    tmp_path: Path, dtype: Dtype
) -> None:
    contract = tiny_models.contract(
        logits=True, input_spec=InputSpec(multiple_of_px=32, stride=1, context_px=0)
    )
    write_model(tmp_path, logits=True, model_contract=contract)
    options = replace(OPTIONS, output="probabilities", dtype=dtype)
    async with serving(tmp_path) as segmenter:
        whole = await segmenter.segment(PNG, options)
        some = await segmenter.segment(PNG, replace(options, classes=("blue", "red")))
        sure = await segmenter.segment(PNG, replace(OPTIONS, output="confidence"))
        labels = await segmenter.segment(PNG, OPTIONS)
    async with serving(tmp_path, max_whole_pixels=300) as segmenter:
        in_parts = await segmenter.segment(PNG, options)
    scores = np.load(io.BytesIO(whole.body))
    assert (whole.media_type, scores.dtype) == ("application/x-npy", np.dtype(dtype))
    assert scores.shape == (3, *RGB.shape[:2])
    assert (scores.argmax(axis=0) == expected_label_map(RGB)).all()
    assert (np.load(io.BytesIO(some.body)) == scores[[0, 2]]).all()
    assert in_parts.body == whole.body
    scale = 255 if dtype is Dtype.FLOAT16 else 1
    largest = scores.max(axis=0).astype(float) * scale
    assert np.abs(read_png(sure.body) - largest).max() <= 1
    assert (read_png(labels.body) == expected_label_map(RGB)).all()


async def test_probabilities_that_are_too_many_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, logits=True)
    monkeypatch.setattr(probabilities, "MAX_BYTES", RGB.shape[0] * RGB.shape[1])
    options = replace(OPTIONS, output="probabilities")
    async with serving(tmp_path) as segmenter:
        with pytest.raises(ImageTooLarge, match="3 classes.*name fewer classes"):
            await segmenter.segment(PNG, options)
        await segmenter.segment(PNG, replace(options, classes=("red",)))


@pytest.mark.parametrize("output", ["probabilities", "confidence"])
async def test_without_logits_the_caller_is_told_how_to_get_them(
    tmp_path: Path, output: str
) -> None:
    write_model(tmp_path)
    async with serving(tmp_path) as segmenter:
        options = replace(OPTIONS, output=output)
        with pytest.raises(InvalidParameter, match="tiny version 1 was exported without.*--logits"):
            segmenter.check(options)
        with pytest.raises(InvalidParameter, match="--logits"):
            await segmenter.segment(PNG, options)


async def test_scores_come_as_arrays_beside_the_body(tmp_path: Path) -> None:
    """Padded by the model's contract, whole and in parts."""
    contract = tiny_models.contract(
        logits=True, input_spec=InputSpec(multiple_of_px=32, stride=1, context_px=0)
    )
    write_model(tmp_path, logits=True, model_contract=contract)
    options = replace(OPTIONS, scores=(Score.PROBABILITIES, Score.LOGITS))
    for max_whole_pixels in (None, 300):
        async with serving(tmp_path, max_whole_pixels=max_whole_pixels) as segmenter:
            reply = await segmenter.segment(PNG, options)
            alone = await segmenter.segment(
                PNG, replace(options, scores=(Score.LOGITS,), output=None)
            )
            plain = await segmenter.segment(PNG, OPTIONS)
        probabilities, logits = reply.scores
        assert (logits == expected_logits(RGB[None])[0]).all()
        assert (alone.scores[0] == logits).all() and not alone.body
        for array in reply.scores:
            assert (array.dtype, array.shape) == (np.dtype(np.float32), (3, *RGB.shape[:2]))
            assert (array.argmax(axis=0) == expected_label_map(RGB)).all()
        assert np.abs(probabilities.sum(axis=0) - 1).max() < 1e-6
        assert (read_png(reply.body) == expected_label_map(RGB)).all()
        assert plain.scores == ()


async def test_arrays_of_scores_that_are_too_large_are_refused_before_the_network_runs(
    tmp_path: Path,
) -> None:
    write_model(tmp_path, logits=True)
    options = replace(OPTIONS, scores=tuple(Score), max_scores_bytes=2 * 3 * 4 * 23 * 31)
    watched = Recorder()
    async with serving(tmp_path, observer=watched) as segmenter:
        await segmenter.segment(PNG, options)
        runs = len(watched.batches)
        with pytest.raises(ImageTooLarge, match="3 classes.*23x31.*send fewer images"):
            await segmenter.segment(PNG, replace(options, max_scores_bytes=2 * 3 * 4 * 23 * 31 - 1))
        assert len(watched.batches) == runs == 1


async def test_arrays_of_scores_need_logits_and_an_output_without(tmp_path: Path) -> None:
    write_model(tmp_path, "with", logits=True)
    write_model(tmp_path, "without")
    options = replace(OPTIONS, scores=(Score.LOGITS,))
    async with serving(tmp_path) as segmenter:
        with pytest.raises(InvalidParameter, match="output logits needs .*without.*--logits"):
            await segmenter.segment(PNG, replace(options, model="without"))
        with pytest.raises(InvalidParameter, match="confidence and arrays of scores.*one of them"):
            await segmenter.segment(PNG, replace(options, model="with", output="confidence"))


async def test_regions_come_as_run_lengths_and_polygons(tmp_path: Path) -> None:
    write_model(tmp_path)
    async with serving(tmp_path) as segmenter:
        options = replace(OPTIONS, classes=("green",))
        rle = await segmenter.segment(PNG, replace(options, output="rle"))
        polygons = await segmenter.segment(PNG, replace(options, output="polygons"))
    assert (rle.media_type, polygons.media_type) == ("application/json", "application/geo+json")
    (mask,), (feature,) = json.loads(rle.body)["classes"], json.loads(polygons.body)["features"]
    assert mask["name"] == feature["properties"]["name"] == "green"
    assert mask["pixels"] == (expected_label_map(RGB) == 1).sum()


async def test_many_pictures_at_once_each_get_their_own(tmp_path: Path) -> None:
    write_model(tmp_path)
    pictures = [street(16 + n % 3, 16, seed=n) for n in range(20)]
    async with serving(tmp_path) as segmenter:
        replies = await asyncio.gather(
            *(segmenter.segment(drawing.png(rgb), OPTIONS) for rgb in pictures)
        )
    for rgb, reply in zip(pictures, replies, strict=True):
        assert (read_png(reply.body) == expected_label_map(rgb)).all()


# Which model


async def test_models_and_versions_are_told_apart(tmp_path: Path) -> None:
    write_model(tmp_path, "plain")
    write_model(tmp_path, "biased", 1, bias=(300, 0, 0))
    write_model(tmp_path, "biased", 2, bias=(0, 300, 0))
    async with serving(tmp_path, default_model="biased") as segmenter:

        async def ids(model: str | None, version: str | None = None) -> set[int]:
            reply = await segmenter.segment(PNG, replace(OPTIONS, model=model, version=version))
            return set(read_png(reply.body).ravel().tolist())

        assert await ids(None) == {1}
        assert await ids("biased") == {1}
        assert await ids("biased", "1") == {0}
        assert await ids("plain") == {0, 1, 2}
        with pytest.raises(UnknownModel, match="choose from biased, plain"):
            await ids("other")
        with pytest.raises(UnknownVersion, match="choose from 1, 2"):
            await ids("biased", "3")
        biased, plain = segmenter.models()
    assert (biased.name, biased.default_version) == ("biased", "2")
    assert [v.version for v in biased.versions] == ["1", "2"]
    assert (plain.default.provider, plain.default.precision) == ("cpu", "fp32")
    assert plain.default.contract.class_names == ("red", "green", "blue")


async def test_the_folders_name_counts_and_a_difference_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(tmp_path, "folder", model_contract=tiny_models.contract("inside"))
    with caplog.at_level(logging.WARNING):
        async with serving(tmp_path) as segmenter:
            reply = await segmenter.segment(PNG, replace(OPTIONS, model="folder"))
            with pytest.raises(UnknownModel):
                await segmenter.segment(PNG, replace(OPTIONS, model="inside"))
    assert reply.model == "folder"
    assert "calls itself 'inside'" in caplog.text


# The start


async def test_before_the_start_nothing_is_ready(tmp_path: Path) -> None:
    write_model(tmp_path)
    segmenter = segmenter_of(tmp_path)
    assert not segmenter.ready()
    assert segmenter.models() == []
    with pytest.raises(ModelNotReady, match="still loading"):
        await segmenter.segment(PNG, OPTIONS)
    await segmenter.start()
    assert segmenter.ready()
    await segmenter.aclose()
    assert not segmenter.ready()


async def test_sizes_to_warm_up_run_before_the_first_request(tmp_path: Path) -> None:
    contract = tiny_models.contract(input_spec=InputSpec(stride=1, max_side_px=300))
    warmed: list[tuple[int, int]] = []

    class Watched(FakeNetwork):
        def warm_up(self, sizes: Sequence[tuple[int, int]]) -> None:
            warmed.extend(sizes)

    write_model(tmp_path)
    async with serving(
        tmp_path,
        open_network=lambda path: Watched(contract=contract),
        warm_up_sizes=((20, 30), (301, 20)),
    ):
        assert (20, 30) in warmed
        assert (256, 256) in warmed
        assert (301, 20) not in warmed


async def test_the_cores_are_divided_as_asked(tmp_path: Path) -> None:
    write_model(tmp_path)
    async with serving(tmp_path, instances=3, alone_threads=2) as segmenter:
        (served,) = segmenter._registry.models()
        found = [instance.full_device for instance in served.network.instances]
        assert found == [False, False, False, True]
        assert (await segmenter.segment(PNG, OPTIONS)).height


async def test_openvino_behind_the_segmenter_answers_as_onnx_runtime_does(tmp_path: Path) -> None:
    need(find_spec("openvino") is not None, "the package openvino")
    write_model(tmp_path)
    async with serving(tmp_path, engine="openvino") as segmenter:
        reply = await segmenter.segment(PNG, OPTIONS)
    assert (read_png(reply.body) == expected_label_map(RGB)).all()


async def test_an_engine_that_cannot_be_had_stops_the_start(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(ModelLoadError, match="engine 'tvm'"):
        await segmenter_of(tmp_path, engine="tvm").start()


NO_CONTRACT = tiny_models.build()
SHRUNK = tiny_models.build(metadata={METADATA_KEY: tiny_models.contract().to_json()}, shrink=True)


@pytest.mark.parametrize(
    ("model", "says"), [(NO_CONTRACT, "has no contract"), (SHRUNK, "not \\[1, 256, 256\\]")]
)
async def test_a_bad_model_stops_the_start_and_leaves_nothing_running(
    tmp_path: Path, model: Any, says: str
) -> None:
    write_model(tmp_path, "a-good-one")
    tiny_models.write_file(model, tmp_path, "bad")
    segmenter = segmenter_of(tmp_path)
    before = asyncio.all_tasks()
    with pytest.raises(ModelLoadError, match=says) as caught:
        await segmenter.start()
    assert "\n" not in str(caught.value)
    assert not segmenter.ready()
    assert asyncio.all_tasks() == before


async def test_a_missing_repository_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="is not a folder"):
        await segmenter_of(tmp_path / "none").start()


async def test_a_default_model_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(ModelLoadError, match="'other' is not in the repository, which has tiny"):
        await segmenter_of(tmp_path, default_model="other").start()


async def test_a_contract_that_allows_no_size_stops_the_start(tmp_path: Path) -> None:
    spec = InputSpec(max_side_px=20, multiple_of_px=32)
    write_model(tmp_path, model_contract=tiny_models.contract(input_spec=spec))
    with pytest.raises(ModelLoadError, match="allows no size at all: no multiple of 32 px"):
        await segmenter_of(tmp_path).start()


# Bad requests


@pytest.mark.parametrize(
    ("image", "options", "error", "says"),
    [
        (b"", OPTIONS, InvalidImage, "empty"),
        (b"some text", OPTIONS, UnsupportedImageFormat, "not an image"),
        (drawing.jpeg(RGB)[:300], OPTIONS, InvalidImage, "truncated"),
        (drawing.huge_png_header(), OPTIONS, ImageTooLarge, "20000x20000"),
        (drawing.animated_gif(), OPTIONS, UnsupportedImageFormat, "GIF"),
        (bytes(20_001), OPTIONS, ImageTooLarge, "20001 bytes"),
        (drawing.png(street(3, 129)), OPTIONS, ImageTooLarge, "up to 128 px"),
        (PNG, replace(OPTIONS, alpha=1.01), InvalidParameter, "from 0 to 1"),
        (PNG, replace(OPTIONS, alpha=float("nan")), InvalidParameter, "from 0 to 1"),
        (PNG, replace(OPTIONS, classes=("dog",)), InvalidParameter, "'dog'.*red, green, blue"),
        (PNG, replace(OPTIONS, deadline_s=0.0), InvalidParameter, "more than 0"),
        (PNG, replace(OPTIONS, deadline_s=float("nan")), InvalidParameter, "more than 0"),
    ],
)
async def test_a_bad_request_is_refused_and_the_next_good_one_is_answered(
    tmp_path: Path, image: bytes, options: SegmentOptions, error: type[ServiceError], says: str
) -> None:
    contract = tiny_models.contract(input_spec=InputSpec(max_side_px=128))
    write_model(tmp_path, model_contract=contract)
    recorder = Recorder()
    async with serving(tmp_path, max_image_bytes=20_000, observer=recorder) as segmenter:
        with pytest.raises(error, match=says):
            await segmenter.segment(image, options)
        reply = await segmenter.segment(PNG, OPTIONS)
    assert (read_png(reply.body) == expected_label_map(RGB)).all()
    assert recorder.inflights[-1] == 0
    assert recorder.reasons == []


# Load, time and leaving


async def test_permits_are_taken_before_the_decode(tmp_path: Path) -> None:
    recorder = Recorder()
    async with on_device(tmp_path, max_inflight=2, observer=recorder) as (segmenter, device):
        device.hold()
        first = send(segmenter)
        await device.entered()
        second = send(segmenter)
        await settle()
        with pytest.raises(Overloaded) as caught:
            # Not a whole image, but that nobody is to find out.
            await segmenter.segment(PNG[:50], OPTIONS)
        assert caught.value.retry_after_s >= 1
        assert recorder.reasons == ["overloaded"]
        device.release()
        await asyncio.gather(first, second)
        await segmenter.segment(PNG, OPTIONS)
    assert max(recorder.inflights) == 2
    assert recorder.inflights[-1] == 0


async def test_by_default_the_memory_decides_how_many_pixels_are_admitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.core.engines.memory.MIN_ADMITTED_PIXELS", 1)
    for memory_bytes, room in ((1, False), (1 << 40, True)):
        monkeypatch.setattr(
            "service.core.segmenter.available_memory_bytes", lambda m=memory_bytes: m
        )
        async with on_device(tmp_path) as (segmenter, device):
            device.hold()
            first = send(segmenter)  # one always fits
            await device.entered()
            second = send(segmenter)
            await settle()
            assert second.done() is not room
            device.release()
            await first
            if room:
                await second
            else:
                with pytest.raises(Overloaded):
                    await second


async def test_pixels_that_no_header_told_are_counted_once_they_are_decoded(tmp_path: Path) -> None:
    body = io.BytesIO()
    Image.fromarray(RGB).save(body, "TIFF", big_tiff=True)
    assert read_header(body.getvalue(), max_bytes=1 << 20) == Header("TIFF")
    async with on_device(tmp_path) as (segmenter, device):
        device.hold()
        first = send(segmenter, body.getvalue())
        await device.entered()
        await settle()
        assert segmenter._admission.held == (1, len(body.getvalue()), 23 * 31)
        device.release()
        await first
        assert segmenter._admission.held == (0, 0, 0)


async def test_a_full_queue_refuses(tmp_path: Path) -> None:
    recorder = Recorder()
    async with on_device(tmp_path, max_queue=1, max_batch=1, observer=recorder) as (
        segmenter,
        device,
    ):
        device.hold()
        first = send(segmenter)
        await device.entered()
        second = send(segmenter)
        await recorder.until_depth(1)
        with pytest.raises(Overloaded):
            await segmenter.segment(PNG, OPTIONS)
        assert recorder.reasons == ["queue_full"]
        device.release()
        await asyncio.gather(first, second)


async def test_a_deadline_ends_the_wait(tmp_path: Path) -> None:
    recorder = Recorder()
    async with on_device(tmp_path, observer=recorder) as (segmenter, device):
        device.hold()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await segmenter.segment(PNG, replace(OPTIONS, deadline_s=0.05))
        assert time.monotonic() - began < WAIT_S / 2
        assert recorder.reasons == ["deadline"]
        device.release()
        await segmenter.segment(PNG, replace(OPTIONS, deadline_s=60.0))


async def test_a_caller_that_leaves_is_dropped_from_the_queue(tmp_path: Path) -> None:
    recorder = Recorder()
    async with on_device(tmp_path, observer=recorder) as (segmenter, device):
        device.hold()
        first = send(segmenter, red(1))
        await device.entered()
        second, third = send(segmenter, red(2)), send(segmenter, red(0))
        await recorder.until_depth(2)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        device.release()
        await asyncio.gather(first, third)
    assert device.values == [[1], [0]]
    assert recorder.reasons == ["cancelled"]
    assert recorder.inflights[-1] == 0


async def test_a_failing_image_is_told_nothing_of_the_cause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with on_device(tmp_path) as (segmenter, _):
        with pytest.raises(InferenceFailed) as caught:
            await segmenter.segment(red(POISON), OPTIONS)
        await segmenter.segment(red(2), OPTIONS)
    assert "secret" not in str(caught.value)
    assert "secret of the device" in caplog.text


async def test_stages_are_observed(tmp_path: Path) -> None:
    write_model(tmp_path)
    recorder = Recorder()
    async with serving(tmp_path, observer=recorder) as segmenter:
        await segmenter.segment(PNG, OPTIONS)
    assert recorder.stages == [("tiny", s) for s in ("decode", "queue", "infer", "render")]
    assert recorder.pixels == [23 * 31]
    assert recorder.batches == [1]
    assert recorder.inflights == [1, 0]


# The end


async def test_draining_finishes_what_is_in_flight_and_refuses_the_rest(tmp_path: Path) -> None:
    recorder = Recorder()
    async with on_device(tmp_path, observer=recorder) as (segmenter, device):
        device.hold()
        first = send(segmenter)
        await device.entered()
        draining = asyncio.get_running_loop().create_task(segmenter.drain(10))
        await settle()
        assert not segmenter.ready()
        with pytest.raises(ShuttingDown):
            await segmenter.segment(PNG, OPTIONS)
        assert not draining.done()
        device.release()
        assert (await first).height == 23
        assert await draining
    assert recorder.reasons == ["shutting_down"]


async def test_draining_gives_up_in_time_and_closing_answers_the_rest(tmp_path: Path) -> None:
    async with on_device(tmp_path) as (segmenter, device):
        device.hold()
        first = send(segmenter)
        await device.entered()
        assert not await segmenter.drain(0.02)
        await segmenter.aclose()
        with pytest.raises(ShuttingDown):
            await first


async def test_draining_an_idle_server_is_done_at_once(tmp_path: Path) -> None:
    async with on_device(tmp_path) as (segmenter, _):
        assert await segmenter.drain(0)


async def test_a_model_whose_worker_died_is_not_ready(tmp_path: Path) -> None:
    class Dead(BaseException):
        """Not an Exception, so that it is no failure of one batch."""

    class Breaking(Recorder):
        def batch(self, model: str, size: int) -> None:
            raise Dead

    async with on_device(tmp_path, observer=Breaking()) as (segmenter, _):
        assert segmenter.ready()
        with pytest.raises(InferenceFailed):
            await segmenter.segment(PNG, OPTIONS)
        assert not segmenter.ready()
        assert segmenter.models()[0].default.state is ModelState.FAILED
        with pytest.raises(ModelNotReady):
            await segmenter.segment(PNG, OPTIONS)


def in_parts(network: FakeNetwork, context_px: int | None = 4) -> dict[str, Any]:
    """Options for a server that runs 23 x 31 pixels in parts of at most 200."""
    spec = InputSpec(stride=4, context_px=context_px)
    network.contract = replace(network.contract, input=spec)
    return {"open_network": lambda path: network, "max_whole_pixels": 200}


async def test_a_large_picture_is_run_in_parts_that_fit(tmp_path: Path) -> None:
    write_model(tmp_path)
    network = FakeNetwork()
    async with serving(tmp_path, **in_parts(network)) as segmenter:
        network.device.batches.clear()
        reply = await segmenter.segment(PNG, OPTIONS)
    assert np.array_equal(read_png(reply.body), RGB[..., 0])
    assert len(network.device.batches) > 3
    assert all(batch[0, :, :, 0].size <= 200 for batch in network.device.batches)
    assert reply.timings.infer_s > 0


async def test_a_part_that_fails_fails_its_picture(tmp_path: Path) -> None:
    write_model(tmp_path)
    network = FakeNetwork()
    picture = RGB.copy()
    picture[..., 0] = POISON
    async with serving(tmp_path, **in_parts(network)) as segmenter:
        with pytest.raises(InferenceFailed):
            await segmenter.segment(drawing.png(picture), OPTIONS)
        # Nothing of it is left behind.
        assert np.array_equal(read_png((await segmenter.segment(PNG, OPTIONS)).body), RGB[..., 0])
        assert await segmenter.drain(WAIT_S)


async def test_the_deadline_holds_between_parts(tmp_path: Path) -> None:
    write_model(tmp_path)
    network = FakeNetwork()
    async with serving(tmp_path, **in_parts(network)) as segmenter:
        network.device.hold()
        asked = asyncio.create_task(segmenter.segment(PNG, replace(OPTIONS, deadline_s=0.2)))
        with pytest.raises(DeadlineExceeded):
            await asked
        network.device.release()


async def test_a_network_that_needs_the_whole_picture_refuses_a_large_one(tmp_path: Path) -> None:
    write_model(tmp_path)
    options = in_parts(FakeNetwork(), context_px=None)
    async with serving(tmp_path, **options) as segmenter:
        with pytest.raises(ImageTooLarge, match="needs the image whole"):
            await segmenter.segment(PNG, OPTIONS)
