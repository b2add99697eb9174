"""Every layout of a TIFF's samples comes out right or is refused; tifffile is the second reader."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from service.errors import UnsupportedImageFormat
from tests.tiffs import (
    BLACK_IS_ZERO,
    CMYK,
    PALETTE,
    REVERSED,
    RGB,
    WHITE_IS_ZERO,
    Layout,
    Samples,
    Tags,
    file,
    tiff,
)
from tests.unit.core.decoding import read

HEIGHT, WIDTH = 19, 37
GREYS = (WHITE_IS_ZERO, BLACK_IS_ZERO)
BITS = {PALETTE: (1, 2, 4, 8), RGB: (8, 16), CMYK: (8, 16)} | dict.fromkeys(
    GREYS, (1, 2, 4, 8, 12, 16)
)
# How many samples beside the colours may lie between them; in planes of their own, 3 of any.
INTERLEAVED = {(0, 8): 1, (1, 8): 1, (RGB, 8): 3, (RGB, 16): 1, (PALETTE, 8): 1, (CMYK, 8): 2}
EXTRA: list[tuple[int, ...]] = [(), (0,), (1,), (2,), (2, 0), (0, 0, 0)]
CODING = [(1, 1), (5, 2), (8, 1), (32773, 1), (1, 2)]
COLORS = np.random.default_rng(1).integers(0, 256, (256, 3))


def second(body: bytes, layout: Layout) -> Samples:
    """The samples [H,W,S] by tifffile, which turns and inverts nothing."""
    array: Samples = tifffile.imread(io.BytesIO(body))
    array = array.astype(np.uint8) if array.dtype == bool else array
    if layout.planar == 2:
        return np.moveaxis(array.reshape(layout.samples, HEIGHT, WIDTH), 0, 2)
    return array.reshape(HEIGHT, WIDTH, layout.samples)


def made(layout: Layout, seed: int = 0) -> Samples:
    """Shades with noise; colours that alpha was multiplied into are not above it."""
    rng = np.random.default_rng(seed)
    top = (1 << layout.bits) - 1
    kind = np.uint8 if layout.bits <= 8 else np.uint16
    made = rng.integers(0, top + 1, (HEIGHT, WIDTH, layout.samples)).astype(kind)
    if 1 in layout.extra:
        at = layout.samples - len(layout.extra) + layout.extra.index(1)
        made[:, :, at] = np.maximum(made[:, :, at], top // 3)
        made[:, :, :at] = np.minimum(made[:, :, :at], made[:, :, at, None])
    return made


def shown(samples: Samples, layout: Layout) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The colours that TIFF 6.0 means, 0 to 255."""
    if layout.photometric == PALETTE:
        return COLORS[samples[:, :, 0]].astype(np.float64)
    part = samples / ((1 << layout.bits) - 1)
    colors = layout.samples - len(layout.extra)
    color = part[:, :, :colors]
    if 1 in layout.extra:
        color = color / part[:, :, colors + layout.extra.index(1), None]
    if layout.photometric == WHITE_IS_ZERO:
        color = 1 - color
    if layout.photometric == CMYK:
        color = (1 - color[:, :, :3]) * (1 - color[:, :, 3:])
    rgb: np.ndarray[Any, np.dtype[np.float64]] = np.broadcast_to(color, (HEIGHT, WIDTH, 3)) * 255
    return rgb


def is_read(layout: Layout) -> bool:
    """docs/images.md, as code."""
    kind = (layout.photometric, layout.bits)
    if layout.bits not in BITS[layout.photometric] or (layout.big and layout.order == ">"):
        return False
    if layout.bits == 12 and layout.order == ">":
        return False
    if layout.predictor == 2 and (layout.compression == 1 or layout.bits not in (8, 16)):
        return False
    if 1 in layout.extra and (layout.planar == 2 or layout.photometric not in (1, RGB)):
        return False
    if layout.fill == 2:
        return layout.bits <= 8 and not layout.extra and layout.photometric <= PALETTE
    return layout.planar == 2 or len(layout.extra) <= INTERLEAVED.get(kind, 0)


def layouts(photometric: int, bits: int, extra: tuple[int, ...]) -> Iterator[Layout]:
    for planar, order, part in itertools.product((1, 2), "<>", ("strips", "tiles")):
        kept = Layout(photometric, bits, extra, planar, order, part=part)
        yield kept.having(part="strip")
        for compression, predictor in CODING:
            yield kept.having(compression=compression, predictor=predictor)
        for compression in (1, 5):
            yield kept.having(compression=compression, fill=2)
        yield kept.having(big=True, compression=5)


@pytest.mark.parametrize("extra", EXTRA, ids=str)
@pytest.mark.parametrize(
    ("photometric", "bits"), [(kind, bits) for kind, depths in BITS.items() for bits in depths]
)
def test_right_or_refused(photometric: int, bits: int, extra: tuple[int, ...]) -> None:
    tags: Tags = {}
    if photometric == PALETTE:
        tags[320] = (3, list((COLORS[: 1 << bits].T * 257).ravel()))
    for layout in layouts(photometric, bits, extra):
        samples = made(layout)
        body = tiff(samples, layout, tags)
        if not is_read(layout):
            with pytest.raises(UnsupportedImageFormat, match=f"{bits}-bit.*save it as 8-bit RGB"):
                read(body)
            continue
        by_tifffile = second(body, layout)
        assert (by_tifffile == samples).all(), layout
        rgb = read(body)
        assert rgb.dtype == np.uint8 and rgb.flags.c_contiguous and not rgb.flags.writeable
        # Colours of 16 bits are cut to their high byte, as is what they are then divided by.
        off = np.abs(rgb - shown(by_tifffile, layout)).max()
        assert off <= (4 if 1 in extra else 2.1 if photometric == CMYK else 1), (layout, off)


@pytest.mark.parametrize("compression", [32946, 34925, 50000])
@pytest.mark.parametrize("bits", [8, 16])
def test_rarer_compressions(compression: int, bits: int) -> None:
    layout = Layout(RGB, bits, compression=compression, predictor=2, part="tiles")
    samples = made(layout)
    body = tiff(samples, layout)
    assert (second(body, layout) == samples).all()
    assert (read(body) == samples >> (bits - 8)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "layout",
    [
        Layout(RGB),
        Layout(RGB, 16, planar=2, part="strips"),
        Layout(RGB, compression=8, part="tiles"),
        Layout(WHITE_IS_ZERO, 16),
        Layout(BLACK_IS_ZERO, 12, compression=5),
    ],
    ids=str,
)
def test_orientation(layout: Layout, orientation: int) -> None:
    layout = layout.having(orientation=orientation)
    samples = made(layout)
    stored = shown(samples, layout)
    turned = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored, 1),
    }[orientation]
    rgb = read(tiff(samples, layout))
    assert rgb.shape == turned.shape
    assert np.abs(rgb - turned).max() <= 1


def test_the_most_and_the_least_of_every_depth() -> None:
    for bits in BITS[BLACK_IS_ZERO]:
        ends = np.array([[[0], [(1 << bits) - 1]]], np.uint16)
        for zero in GREYS:
            grey = read(tiff(ends, Layout(zero, bits)))[0, :, 0].tolist()
            assert grey == ([255, 0] if zero == WHITE_IS_ZERO else [0, 255]), bits


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
def test_fax(compression: str) -> None:
    bits = made(Layout(BLACK_IS_ZERO, 1))[:, :, 0].astype(bool)
    buffer = io.BytesIO()
    Image.fromarray(bits).save(buffer, "TIFF", compression=compression)
    body = buffer.getvalue()
    with tifffile.TiffFile(io.BytesIO(body)) as written:
        first: Any = written.pages.first
        places = zip(first.dataoffsets, first.databytecounts, strict=True)
        strips = [body[at : at + length] for at, length in places]
        tags: Tags = {n: (4, [first.tags[n].value]) for n in (256, 257, 259, 262, 278)}
        tags |= {n: (4, [first.tags[n].value]) for n in (292, 293) if n in first.tags}
    for inverted, fill in itertools.product((False, True), (1, 2)):
        photometric = first.photometric ^ 1 if inverted else first.photometric
        kept = tags | {262: (3, [photometric]), 266: (3, [fill])}
        body = file([(kept, [one.translate(REVERSED) if fill == 2 else one for one in strips])])
        assert (tifffile.imread(io.BytesIO(body)).astype(bool) == bits).all()
        assert (read(body) == np.repeat((bits ^ inverted)[:, :, None], 3, axis=2) * 255).all()
