"""Divides an image too large for one inference into tiles, whose labels are those of the whole.

Tiles overlap: one starts at a multiple of the network's stride and reads `context_px` more on every
side than it answers for, so that for the pixels it answers for nothing it lacks would have counted;
see `InputSpec.context_px`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from model.contract import InputSpec
from service.core.types import UInt8Array
from service.errors import ImageTooLarge

S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Span:
    """Reads [start, end) and answers for [first, last), in pixels of the image along one axis."""

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Tile:
    """Is one part of an image."""

    rows: Span
    columns: Span

    def cut(self, rgb: UInt8Array) -> UInt8Array:
        """Copies its pixels out of uint8 [H,W,3], C-contiguous uint8 [h,w,3]."""
        rows, columns = self.rows, self.columns
        return np.ascontiguousarray(rgb[rows.start : rows.end, columns.start : columns.end])

    def put(self, labels: npt.NDArray[S], whole: npt.NDArray[S]) -> None:
        """Writes [...,h,w] of this tile into [...,H,W] where it answers."""
        rows, columns = self.rows, self.columns
        whole[..., rows.first : rows.last, columns.first : columns.last] = labels[
            ...,
            rows.first - rows.start : rows.last - rows.start,
            columns.first - columns.start : columns.last - columns.start,
        ]


class Mosaic:
    """Cuts an image into tiles and puts their answers together."""

    def __init__(self, image: UInt8Array, spec: InputSpec, max_pixels: int) -> None:
        """Divides image, uint8 [H,W,3]. max_pixels: of one tile. Raises: as `tiles`."""
        self._image = image
        height, width = self._size = image.shape[0], image.shape[1]
        self.tiles = tiles(height, width, spec, max_pixels)
        self.label_map: UInt8Array = np.empty(self._size, np.uint8)
        self.scores: npt.NDArray[Any] | None = None

    def cut(self, tile: Tile) -> UInt8Array:
        """Returns a tile's pixels, C-contiguous uint8 [h,w,3]."""
        return tile.cut(self._image)

    def placing(
        self, tile: Tile, label_map: UInt8Array, scores: npt.NDArray[Any] | None
    ) -> Callable[[], None]:
        """Returns the work that puts a tile's answer into its place, for any thread to do."""
        if scores is not None and self.scores is None:
            self.scores = np.empty((*scores.shape[:-2], *self._size), scores.dtype)
        whole = self.scores

        def place() -> None:
            tile.put(label_map, self.label_map)
            if scores is not None and whole is not None:
                tile.put(scores, whole)

        return place


def tiles(height: int, width: int, spec: InputSpec, max_pixels: int) -> list[Tile]:
    """Divides an image into tiles of at most `max_pixels`, which answer for every pixel once.

    They are in reading order, and of the grids that fit theirs reads the fewest pixels. A small
    image is one tile. Raises: ImageTooLarge if the network needs the whole image, or if so few
    pixels leave no room beside the context.
    """
    if height * width <= max_pixels:
        whole = Tile(Span(0, height, 0, height), Span(0, width, 0, width))
        return [whole]
    if spec.context_px is None:
        raise ImageTooLarge(
            f"the image is {height}x{width} (height x width), this server runs {max_pixels} "
            "pixels at once and this model needs the image whole: scale it down, or raise "
            "FCN_MAX_WHOLE_PIXELS"
        )
    best: tuple[int, list[Span], list[Span]] | None = None
    for rows in _divisions(height, spec):
        tallest = max(span.end - span.start for span in rows)
        columns = _fitting(width, spec, max_pixels // tallest)
        if columns is None:
            continue
        read = sum(r.end - r.start for r in rows) * sum(c.end - c.start for c in columns)
        if best is None or read < best[0]:
            best = (read, rows, columns)
    if best is None:
        side = 2 * spec.context_px + spec.stride
        raise ImageTooLarge(
            f"the image is {height}x{width} (height x width) and needs tiles of {side}x{side} "
            f"pixels where this server runs {max_pixels} at once: scale it down, or raise "
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
    if length <= longest:
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
        Span(max(0, first - context), min(length, first + size + context), first, last)
        for first in range(0, length, size)
        if (last := min(length, first + size))
    ]
