"""The whole path with a real ONNX file: what is answered, by which model, and what is refused."""

from __future__ import annotations

import asyncio
import io
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.contract import InputSpec
from service.core.outputs import probabilities
from service.core.types import Dtype, Score, SegmentOptions
from service.errors import (
    ImageTooLarge,
    InvalidImage,
    InvalidParameter,
    ServiceError,
    UnknownModel,
    UnknownVersion,
    UnsupportedImageFormat,
)
from tests import drawing, tiny_models
from tests.drawing import read_png, street
from tests.tiny_models import expected_label_map, expected_logits, write_model
from tests.unit.core.fakes import Recorder
from tests.unit.core.segmenters import OPTIONS, PNG, RGB, serving

# The answer


@pytest.mark.parametrize("size", [(1, 1), (23, 31), (1, 40), (64, 3)])
async def test_an_image_gets_its_label_map(tmp_path: Path, size: tuple[int, int]) -> None:
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
    images = [street(9, 12), street(5, 7), RGB]
    async with serving(tmp_path) as segmenter:
        replies = await asyncio.gather(
            segmenter.segment(drawing.png(images[0]), options),
            segmenter.segment(drawing.png(images[1]), options),
            segmenter.segment(images[2], options),
        )
        with pytest.raises(InvalidImage, match="empty"):
            await segmenter.segment(b"", OPTIONS)
    for rgb, reply in zip(images, replies, strict=True):
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
