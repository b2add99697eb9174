"""One page of a TIFF is the image, and samples that cannot be read are refused by name."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import tifffile

from service.errors import InvalidImage, UnsupportedImageFormat
from tests import tiffs
from tests.drawing import street
from tests.tiffs import BLACK_IS_ZERO, LAB, MASK, PALETTE, YCBCR, Layout, Tags, file, page, tiff
from tests.unit.core.decoding import outcomes, read

RGB = street(24, 32)
GREY = RGB[:, :, 1, None]


FULL = page(RGB, Layout())
COPY = page(RGB[::2, ::2], Layout(), {254: (4, [1])})
OLD_COPY = page(RGB[::2, ::2], Layout(), {255: (3, [2])})
MASK_PAGE = page((GREY > 99).astype(np.uint8), Layout(MASK, 1), {254: (4, [4])})
UNMARKED_MASK = page((GREY > 99).astype(np.uint8), Layout(MASK, 1))
GREY_MASK = page(GREY, Layout(BLACK_IS_ZERO), {254: (4, [4])})
MASK_OF_COPY = page(GREY[::2, ::2], Layout(BLACK_IS_ZERO), {254: (4, [5])})
DEPTH = page(GREY, Layout(BLACK_IS_ZERO), {254: (4, [8])})
PAGE_OF_SEVERAL = page(RGB, Layout(), {254: (4, [2])})
PREVIEW = page(RGB[::4, ::4], Layout(), {254: (4, [1]), 330: (4, [8])})


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "pages",
    [
        [FULL],
        [FULL, COPY],
        [FULL, MASK_PAGE],
        [FULL, UNMARKED_MASK],
        [FULL, GREY_MASK, COPY, MASK_OF_COPY],
        [FULL, OLD_COPY],
        [FULL, DEPTH],
        [COPY, FULL],
        [PREVIEW, FULL],
        [PAGE_OF_SEVERAL],
    ],
)
def test_copies_and_masks_are_no_images(pages: list[Any], order: str, big: bool) -> None:
    if order == ">" and big:
        return  # refused, as test_tiff_grid says
    assert (read(file(pages, order, big)) == RGB).all()


def test_a_copy_or_a_mask_alone_is_the_image() -> None:
    assert (read(file([COPY])) == RGB[::2, ::2]).all()
    assert (read(file([GREY_MASK])) == np.repeat(GREY, 3, axis=2)).all()


@pytest.mark.parametrize(
    ("pages", "says"),
    [
        ([FULL, FULL], "holds 2 images: send each"),
        ([PAGE_OF_SEVERAL, COPY, PAGE_OF_SEVERAL, FULL], "holds 3 images"),
        ([COPY, COPY], "no full image .* camera raw and .ovr files do: save it as 8-bit RGB"),
        ([PREVIEW], "no full image"),
    ],
)
def test_several_images_or_none_are_refused(pages: list[Any], says: str) -> None:
    with pytest.raises(UnsupportedImageFormat, match=says):
        read(file(pages))


def test_directories_that_end_nowhere_or_in_a_circle() -> None:
    body = bytearray(file([FULL, COPY]))
    (first,) = struct.unpack_from("<I", body, 4)
    link = first + 2 + 12 * struct.unpack_from("<H", body, first)[0]
    for place in (first, len(body) + 8):
        struct.pack_into("<I", body, link, place)
        assert (read(bytes(body)) == RGB).all()


def deep(kind: str) -> np.ndarray[Any, Any]:
    return np.repeat(GREY, 3, axis=2).astype(kind)


@pytest.mark.parametrize(
    ("samples", "layout", "tags", "says"),
    [
        (GREY, Layout(BLACK_IS_ZERO, 8, format=2), {}, "grey, 8-bit signed, 1 .*no known white"),
        (GREY, Layout(BLACK_IS_ZERO, 16, format=2), {}, "16-bit signed"),
        (GREY, Layout(BLACK_IS_ZERO, 32, format=2), {}, "32-bit signed"),
        (GREY / 255, Layout(BLACK_IS_ZERO, 16, format=3), {}, "16-bit floating-point"),
        (GREY / 255, Layout(BLACK_IS_ZERO, 32, format=3), {}, "32-bit floating-point"),
        (GREY / 255, Layout(BLACK_IS_ZERO, 64, format=3), {}, "64-bit floating-point"),
        (deep("f4"), Layout(bits=32, format=3), {}, "RGB, 32-bit floating-point, 3 "),
        (GREY, Layout(BLACK_IS_ZERO), {339: (3, [4])}, "format-4"),
        (RGB, Layout(), {339: (3, [1, 2, 1])}, "8-bit mixed"),
        (GREY, Layout(BLACK_IS_ZERO, 32), {}, "read with 1, 2, 4, 8, 12 or 16 bits"),
        (GREY.astype("u8"), Layout(BLACK_IS_ZERO, 64), {}, "64-bit"),
        (RGB, Layout(bits=4), {}, "RGB is read with 8 or 16 bits"),
        (RGB, Layout(bits=12), {}, "RGB is read with 8 or 16 bits"),
        (deep("u4"), Layout(bits=32), {}, "RGB is read with 8 or 16 bits"),
        (GREY, Layout(PALETTE, 16), {320: (3, [0] * 3)}, "palette is read with 1, 2, 4 or 8"),
        (RGB, Layout(), {258: (3, [5, 6, 5])}, "5 or 6-bit"),
        (RGB, Layout(LAB), {}, r"CIE L\*a\*b\*, .*colour is not read"),
        (RGB, Layout(9), {}, "ICC"),
        (GREY, Layout(32803), {}, "sensor"),
        (GREY, Layout(12345), {}, "photometric interpretation 12345"),
        (RGB, Layout(), {259: (3, [6])}, "compression 6: this compression is not read"),
        (RGB, Layout(), {259: (3, [34712])}, "compression 34712"),
        (RGB, Layout(), {259: (3, [4])}, "fax compression has 1 bit"),
        (RGB, Layout(compression=5), {317: (3, [3])}, "predictor 3"),
        (np.dstack([RGB, GREY]), Layout(5), {332: (3, [2])}, "tag 332"),
        (np.dstack([RGB, GREY]), Layout(5), {336: (3, [255, 0])}, "tag 336"),
        (GREY, Layout(PALETTE), {320: (3, [200] * 768)}, "8 bits instead of 16"),
        (GREY, Layout(PALETTE), {320: (3, [9999] * 48)}, "has not 768 numbers"),
        (GREY, Layout(PALETTE), {}, "has not 768 numbers"),
        (RGB, Layout(YCBCR, planar=2), {}, "three interleaved samples"),
        (RGB, Layout(YCBCR), {532: (5, [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1])}, "532"),
        (RGB, Layout(YCBCR), {529: (5, [2126, 10000, 7152, 10000, 722, 10000])}, "tag 529"),
        (RGB, Layout(), {277: (3, [2])}, "samples are missing"),
    ],
)
def test_refused_by_name(samples: Any, layout: Layout, tags: Tags, says: str) -> None:
    with pytest.raises(UnsupportedImageFormat, match=f"{says}.*save it as 8-bit RGB, inter"):
        read(tiff(samples, layout, tags))


def test_without_a_photometric_interpretation() -> None:
    tags, parts = page(RGB, Layout())
    del tags[262]
    with pytest.raises(UnsupportedImageFormat, match="this kind of colour"):
        read(file([(tags, parts)]))


def test_ycbcr_with_fewer_samples_of_colour() -> None:
    rng = np.random.default_rng(0)
    ycc = rng.integers(0, 256, (24, 32, 3)).astype(np.uint8)
    ycc[:, :, 1:] = np.repeat(np.repeat(ycc[::2, ::2, 1:], 2, axis=0), 2, axis=1)
    y, cb, cr = (ycc[:, :, n].astype(float) for n in range(3))
    want = np.dstack(  # TIFF 6.0, section 21, with the coefficients of ITU-R BT.601
        [
            y + 1.402 * (cr - 128),
            y - (0.114 * 1.772 * (cb - 128) + 0.299 * 1.402 * (cr - 128)) / 0.587,
            y + 1.772 * (cb - 128),
        ]
    ).clip(0, 255)
    luma = ycc[:, :, 0]
    corners = [luma[::2, ::2], luma[::2, 1::2], luma[1::2, ::2], luma[1::2, 1::2]]
    units = np.dstack([*corners, ycc[::2, ::2, 1], ycc[::2, ::2, 2]]).tobytes()
    for compression, written in tiffs.COMPRESSED.items():
        halved, _ = page(ycc, Layout(YCBCR, compression=compression))
        assert np.abs(read(file([(halved, [bytes(written(units))])])) - want).max() <= 2
        whole = Layout(YCBCR, compression=compression, part="tiles")
        assert np.abs(read(tiff(ycc, whole, {530: (3, [1, 1])})) - want).max() <= 2


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "rgb"},
        {"photometric": "rgb", "tile": (16, 16)},
        {"photometric": "ycbcr", "subsampling": (1, 1)},
        {"photometric": "ycbcr", "subsampling": (2, 2)},
        {"photometric": "ycbcr", "subsampling": (2, 1), "tile": (32, 32)},
        {"photometric": "ycbcr", "subsampling": (2, 2), "rowsperstrip": 16},
        {"photometric": "rgb", "planarconfig": "separate"},
    ],
    ids=str,
)
def test_jpeg_inside(options: dict[str, Any]) -> None:
    separate = "planarconfig" in options
    array = np.moveaxis(RGB, 2, 0) if separate else RGB
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, compression="jpeg", **options)
    body = buffer.getvalue()
    seen = tifffile.imread(io.BytesIO(body))
    assert (
        np.abs(read(body) - (np.moveaxis(seen, 0, 2) if separate else seen).astype(int)).max() <= 2
    )
    at = body.rindex(b"\xff\xd9")
    with pytest.raises(InvalidImage):
        read(body[:at] + b"\0\0" + body[at + 2 :])


def test_jpeg_of_12_bits_inside() -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, GREY[:, :, 0].astype(np.uint16) * 16, compression="jpeg", bitspersample=12
    )
    seen = tifffile.imread(io.BytesIO(buffer.getvalue())) / 4095 * 255
    assert np.abs(read(buffer.getvalue())[:, :, 0] - seen).max() <= 1


@pytest.mark.parametrize("compression", [1, 5, 8, 32773])
@pytest.mark.parametrize("part", ["strip", "strips", "tiles"])
def test_what_is_cut_off_is_refused(part: str, compression: int) -> None:
    tags, parts = page(RGB, Layout(compression=compression, part=part))
    cut = [
        [*parts[:-1], parts[-1][:-10]],
        [*parts[:-1], parts[-1][: len(parts[-1]) // 2]],
        [b"", *parts[1:]],
        parts[:-1],
    ]
    for left in cut:
        with pytest.raises(InvalidImage, match="TIFF file is truncated or damaged"):
            read(file([(tags, left)]))


def test_strips_beyond_the_end_are_refused() -> None:
    tags, parts = page(RGB, Layout())
    body = bytearray(file([(tags, parts)]))
    entry = body.index(struct.pack("<HHI", 273, 4, 1))
    struct.pack_into("<I", body, entry + 8, len(body) - len(parts[0]) + 1)
    with pytest.raises(InvalidImage, match="truncated or damaged"):
        read(bytes(body))


def test_a_tile_may_not_be_much_larger_than_the_image() -> None:
    tags, parts = page(RGB, Layout(compression=8, part="tiles"))
    tags |= {322: (4, [1 << 15]), 323: (4, [1 << 15])}
    with pytest.raises(UnsupportedImageFormat, match="32768x32768"):
        read(file([(tags, parts)]))


@pytest.mark.parametrize("kind", [1, 2, 5, 7, 12, 99])
@pytest.mark.parametrize("tag", [270, 271, 274, 282, 305, 700, 33723, 34377, 34665, 34675, 42112])
def test_metadata_decide_nothing(tag: int, kind: int) -> None:
    body = bytearray(tiff(RGB, Layout(), {tag: (4, [0xFFFFFFF0])}))
    entry = body.index(struct.pack("<HHI", tag, 4, 1))
    struct.pack_into("<HHI", body, entry, tag, kind, 0x7FFFFFFF)
    assert (read(bytes(body)) == RGB).all()


def test_damaged_tiffs_give_an_image_or_a_domain_error() -> None:
    rng = np.random.default_rng(20)
    bodies = [
        tiff(RGB, Layout()),
        tiff(RGB, Layout(compression=5, predictor=2, part="tiles", order=">")),
        tiff(GREY, Layout(BLACK_IS_ZERO, 16, compression=8, big=True)),
        tiff(RGB, Layout(planar=2, compression=32773, part="strips")),
        tiff(GREY, Layout(PALETTE), {320: (3, [7000] * 768)}),
        tiff(RGB, Layout(YCBCR), {530: (3, [1, 1])}),
        file([FULL, COPY, GREY_MASK]),
    ]
    kinds = outcomes(
        rng, bodies, lambda body: (len(body) - 300 if rng.random() < 0.7 else 0, len(body))
    )
    assert {"read", "invalid-image", "unsupported-image-format"} <= kinds
