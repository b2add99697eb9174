"""The network sees an image at a size that it knows, and the answer has the upload's."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.contract import InputSpec
from service.core.images.decode import decode, decode_reduced, network_size, reduction_to
from service.core.images.header import read_header
from service.core.images.scale import averaged, enlarged, resized
from service.core.types import Scale, Score, SegmentOptions
from tests.drawing import UInt8Array, encode, png, read_png, street
from tests.tiny_models import contract, expected_label_map, write_model
from tests.unit.core.segmenters import OPTIONS, serving

KNOWN = InputSpec(stride=1, learned_side_px=40, range_from_px=20, range_to_px=80)
LARGE = street(150, 203)


def known(folder: Path, *, logits: bool = False) -> Path:
    """Writes a model that knows sides from 20 to 80, and learned at 40."""
    write_model(folder, logits=logits, model_contract=contract(logits=logits, input_spec=KNOWN))
    return folder


@pytest.mark.parametrize(
    ("size", "scale", "seen"),
    [
        ((20, 7), "auto", (20, 7)),
        ((80, 80), "auto", (80, 80)),
        ((81, 9), "auto", (40, 4)),
        ((150, 203), "auto", (30, 40)),
        ((19, 10), "auto", (40, 21)),
        ((1, 9999), "auto", (1, 40)),
        ((150, 203), "none", (150, 203)),
        ((150, 203), 100, (74, 100)),
        ((150, 203), 300, (150, 203)),
    ],
)
def test_the_size_that_the_network_sees(
    size: tuple[int, int], scale: Scale, seen: tuple[int, int]
) -> None:
    assert network_size(*size, KNOWN, scale) == seen
    assert network_size(*size[::-1], KNOWN, scale) == seen[::-1], "whichever way it lies"


def test_a_contract_without_a_range_scales_nothing_unless_asked() -> None:
    assert network_size(3000, 4000, InputSpec(), "auto") == (3000, 4000)
    assert network_size(3000, 4000, InputSpec(), 480) == (360, 480)


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("size", [(64, 96), (37, 53), (9, 17)])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
def test_a_jpeg_is_decoded_smaller_to_pillows_pixels(
    reduction: int, size: tuple[int, int], options: dict[str, int]
) -> None:
    body = encode(street(*size), "JPEG", quality=90, **options)
    header = read_header(body, max_bytes=1 << 20)
    assert header.plain
    by_libjpeg = decode_reduced(body, header, reduction, max_pixels=10_000)
    by_pillow = decode_reduced(body, replace(header, plain=False), reduction, max_pixels=10_000)
    assert by_libjpeg[1] == by_pillow[1] == size
    np.testing.assert_array_equal(by_libjpeg[0], by_pillow[0])
    assert by_libjpeg[0].shape == tuple(-(-side // reduction) for side in size) + (3,)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_every_kind_is_reduced_upright(kind: str, orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    body = io.BytesIO()
    more = {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]} if kind == "MPO" else {}
    Image.fromarray(street(60, 84)).save(body, kind, exif=tags.tobytes(), **more)
    header = read_header(body.getvalue(), max_bytes=1 << 20)
    whole = decode(body.getvalue(), header, max_pixels=10_000)
    rgb, size = decode_reduced(body.getvalue(), header, 4, max_pixels=10_000)
    assert size == whole.shape[:2]
    mean = averaged(whole, 4)
    assert rgb.shape == mean.shape
    assert np.abs(rgb.astype(int) - mean).mean() < 4


def test_what_is_averaged_resized_and_enlarged() -> None:
    rgb = LARGE[:9, :14]
    parts = [[rgb[y : y + 4, x : x + 4].mean((0, 1)) for x in (0, 4, 8, 12)] for y in (0, 4, 8)]
    assert np.abs(averaged(rgb, 4) - np.array(parts)).max() <= 0.51
    assert resized(rgb, (9, 14)) is rgb
    assert resized(rgb, (3, 5)).shape == (3, 5, 3)
    grid = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(enlarged(grid, (4, 9)), np.kron(grid, np.ones((2, 3), int)))
    np.testing.assert_array_equal(enlarged(grid, (1, 1)), [[4]])
    assert reduction_to(3000, 4000, (360, 480)) == 8
    assert reduction_to(3000, 4000, (720, 960)) == 4
    assert reduction_to(700, 480, (700, 480)) == 1
    assert reduction_to(4000, 3, (40, 1)) == 2


def seen(rgb: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Makes what the network is shown of pixels that are sent as such."""
    reduction = reduction_to(rgb.shape[0], rgb.shape[1], size)
    return resized(rgb if reduction == 1 else averaged(rgb, reduction), size)


async def test_every_way_of_sending_gets_the_same_labels_of_the_uploads_size(
    tmp_path: Path,
) -> None:
    wanted = enlarged(expected_label_map(seen(LARGE, (30, 40))), LARGE.shape[:2])
    array = replace(OPTIONS, output=None)
    async with serving(known(tmp_path)) as segmenter:
        replies = [
            *await asyncio.gather(*[segmenter.segment(png(LARGE), OPTIONS) for _ in range(4)]),
            await segmenter.segment(LARGE, OPTIONS),
            await segmenter.segment(LARGE, array),
        ]
        number = await segmenter.segment(LARGE, replace(array, scale=40))
        own = await segmenter.segment(LARGE, replace(OPTIONS, scale="none"))
        small = await segmenter.segment(LARGE[:10, :10], OPTIONS)
    for reply in (*replies, number):
        np.testing.assert_array_equal(reply.label_map, wanted)
        assert (reply.height, reply.width, reply.network_size) == (150, 203, (30, 40))
    assert all((read_png(reply.body) == wanted).all() for reply in replies[:5])
    np.testing.assert_array_equal(read_png(own.body), expected_label_map(LARGE))
    assert own.network_size == (150, 203)
    assert (small.network_size, small.label_map.shape) == ((40, 40), (10, 10))


@pytest.mark.parametrize(
    "output", ["color", "confidence", "json", "overlay", "polygons", "probabilities", "rle"]
)
async def test_every_output_has_the_uploads_size(tmp_path: Path, output: str) -> None:
    body = encode(LARGE, "JPEG", quality=90)
    async with serving(known(tmp_path, logits=True)) as segmenter:
        reply = await segmenter.segment(body, SegmentOptions(output=output, alpha=0.0))
        labels = (await segmenter.segment(body, OPTIONS)).label_map
    np.testing.assert_array_equal(reply.label_map, labels)
    match output:
        case "json":
            found = json.loads(reply.body)
            assert [found[f"{n}height"] for n in ("", "network_")] == [150, 30]
            assert sum(c["pixels"] for c in found["classes"]) == labels.size
        case "probabilities":
            scores = np.load(io.BytesIO(reply.body))
            np.testing.assert_array_equal(scores.argmax(axis=0), labels)
        case "overlay":  # at no opacity the upload as it is, not what the network saw
            np.testing.assert_array_equal(read_png(reply.body), read_png(body))
        case "color" | "confidence":
            assert read_png(reply.body).shape[:2] == LARGE.shape[:2]
        case "rle":
            assert json.loads(reply.body)["classes"][0]["segmentation"]["size"] == [150, 203]
        case "polygons":
            corners = np.concatenate(
                [
                    np.reshape(ring, (-1, 2))
                    for feature in json.loads(reply.body)["features"]
                    for polygon in feature["geometry"]["coordinates"]
                    for ring in polygon
                ]
            )
            assert corners.max(axis=0).tolist() == [203, 150]


async def test_arrays_of_scores_have_the_uploads_size(tmp_path: Path) -> None:
    options = replace(OPTIONS, output=None, scores=(Score.PROBABILITIES,))
    async with serving(known(tmp_path, logits=True)) as segmenter:
        reply = await segmenter.segment(LARGE, options)
    assert reply.scores[0].shape == (3, 150, 203)
    np.testing.assert_array_equal(reply.scores[0].argmax(axis=0), reply.label_map)


async def test_tiles_are_for_what_the_network_sees(tmp_path: Path) -> None:
    """An image that would be run in parts at its own size is run whole once it is scaled."""
    write_model(tmp_path, model_contract=contract(input_spec=replace(KNOWN, context_px=0)))
    async with serving(tmp_path, max_whole_pixels=2000) as segmenter:
        scaled = await segmenter.segment(LARGE, OPTIONS)
        parts = await segmenter.segment(LARGE, replace(OPTIONS, scale="none"))
        both = await segmenter.segment(LARGE, replace(OPTIONS, scale=100))
    assert scaled.network_size == (30, 40)
    np.testing.assert_array_equal(parts.label_map, expected_label_map(LARGE))
    wanted = expected_label_map(seen(LARGE, (74, 100)))
    np.testing.assert_array_equal(both.label_map, enlarged(wanted, (150, 203)))


def test_a_plain_jpeg_that_is_decoded_smaller_costs_less() -> None:
    header = read_header(encode(LARGE, "JPEG"), max_bytes=1 << 20)
    assert header.reduced_bytes(1) == header.decode_bytes
    saved = header.decode_bytes - header.reduced_bytes(8)
    assert saved == 3 * (150 * 203 - 19 * 26)
    turned = replace(header, plain=False)
    assert turned.reduced_bytes(8) == turned.decode_bytes, "Pillow's may be read whole first"
