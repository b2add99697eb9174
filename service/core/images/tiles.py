"""Divides an image too large for one inference into tiles, whose labels are those of the whole.

Tiles overlap: one starts at a multiple of the network's stride and reads `context_px` more on every
side than it answers for, so that for the pixels it answers for nothing it lacks would have counted;
see `InputSpec.context_px`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract import InputSpec
from service.core.images.decode import filled_side, network_pixels
from service.core.types import UInt8Array
from service.errors import ImageTooLarge

_MOST_READ = 16
"""Pixels that tiles may read for each of the image: beyond, one request would keep a processor busy
for minutes, nearly all of the time with what tiles have in common."""

Span = tuple[slice, slice]
"""Pixels along one axis: those that are read, and the part of them that is answered for."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Is one part of an image."""

    rows: Span
    columns: Span

    def cut(self, rgb: UInt8Array) -> UInt8Array:
        """Copies its pixels out of uint8 [H,W,3], C-contiguous uint8 [h,w,3]."""
        return np.ascontiguousarray(rgb[self.rows[0], self.columns[0]])

    def put(self, part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> None:
        """Writes [...,h,w] of this tile into [...,H,W] where it answers."""
        inside = (_inside(self.rows), _inside(self.columns))
        whole[..., self.rows[1], self.columns[1]] = part[..., *inside]


def tiles(height: int, width: int, spec: InputSpec, max_pixels: int) -> list[Tile]:
    """Divides an image into tiles of at most `max_pixels`, as the network counts them, which answer
    for every pixel once.

    They are in reading order, and of the grids that fit theirs reads the fewest pixels. A small
    image is one tile. Raises: ImageTooLarge if the network needs the whole image, or if so few
    pixels leave no room, or hardly any, beside the context.
    """
    pixels = network_pixels(height, width, spec)
    if pixels <= max_pixels:
        return [Tile(*((slice(0, side), slice(0, side)) for side in (height, width)))]
    if spec.context_px is None:
        raise ImageTooLarge(
            f"the image is {height}x{width} (height x width), this server runs {max_pixels} "
            "pixels at once and this model needs the image whole: scale it down, or raise "
            "FCN_MAX_WHOLE_PIXELS"
        )
    best: tuple[int, list[Span], list[Span]] | None = None
    for rows in _divisions(height, spec):
        tallest = filled_side(max(_read_px(rows)), spec)
        columns = _fitting(width, spec, max_pixels // tallest)
        if columns is None:
            continue
        read = sum(_read_px(rows)) * sum(_read_px(columns))
        if best is None or read < best[0]:
            best = (read, rows, columns)
    if best is None:
        side = 2 * spec.context_px + spec.stride
        raise ImageTooLarge(
            f"the image is {height}x{width} (height x width) and needs tiles of {side}x{side} "
            f"pixels where this server runs {max_pixels} at once: scale it down, or raise "
            "FCN_MAX_WHOLE_PIXELS"
        )
    if best[0] > _MOST_READ * pixels:
        raise ImageTooLarge(
            f"the image is {height}x{width} (height x width), and in parts of at most {max_pixels} "
            f"pixels, each with the {spec.context_px} around it that a label may depend on, it "
            f"takes {best[0] // pixels} times the computation: scale it down, or raise "
            "FCN_MAX_WHOLE_PIXELS"
        )
    return [Tile(rows, columns) for rows in best[1] for columns in best[2]]


def _divisions(length: int, spec: InputSpec) -> Iterator[list[Span]]:
    """Divides into 1, 2, 3 ... spans of about equal size, down to spans of one stride."""
    steps = -(-length // spec.stride)
    sizes = {-(-steps // parts) for parts in range(1, steps + 1)}
    for size in sorted(sizes, reverse=True):
        yield _spans(length, size * spec.stride, spec)


def _fitting(length: int, spec: InputSpec, longest: int) -> list[Span] | None:
    """Finds the fewest spans that each read at most `longest` pixels; None if there are none."""
    if filled_side(length, spec) <= longest:
        return _spans(length, length, spec)
    context = spec.context_px or 0
    steps = (longest - 2 * context) // spec.stride
    if steps < 1:
        return None
    # Of so many spans, the smallest ones: none is a sliver that costs a whole context.
    count = -(-length // (steps * spec.stride))
    even = math.ceil(length / count / spec.stride) * spec.stride
    return _spans(length, even, spec)


def _spans(length: int, size: int, spec: InputSpec) -> list[Span]:
    context = spec.context_px or 0
    return [
        (
            slice(max(0, first - context), min(length, first + size + context)),
            slice(first, min(length, first + size)),
        )
        for first in range(0, length, size)
    ]


def _read_px(spans: Sequence[Span]) -> list[int]:
    return [read.stop - read.start for read, _ in spans]


def _inside(span: Span) -> slice:
    """Returns where the answer lies in what was read."""
    read, answered = span
    return slice(answered.start - read.start, answered.stop - read.start)
