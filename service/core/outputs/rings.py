"""Finds the rings around the regions of a label map, as the edges of its pixels.

Each class has the horizontal edges of its pixels, merged to the longest, as directed lines: +x over
its pixels and -x under them, so that outer rings come out with positive area and holes with
negative. Along every vertical line the corners of a class pair up in order, which leads from each
horizontal edge to the next: rings are the cycles of that permutation. All of it is proportional to
the length of the borders, but for one pass over the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.core.outputs.classes import VOID

UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]
Ring = npt.NDArray[np.int32]
"""int32 [n+1,2]: x and y of n corners, and the first again."""


class Edges:
    """Finds them as directed lines at y, from x `start` to x `end`; `under`: of pixels above it."""

    def __init__(self, padded: UInt8Array) -> None:
        """padded: uint8 [1+H+1,W], the first and the last row void."""
        self.width = padded.shape[1]
        flat = padded.ravel()
        # Where a pixel differs from the one above, in units of a pixel and reading order.
        self._at: Int64Array = np.flatnonzero(flat[self.width :] != flat[: -self.width])
        over, first, last = self._runs(flat[self._at + self.width])
        under, first_under, last_under = self._runs(flat[self._at])
        self.label: UInt8Array = np.concatenate((over, under))
        self.y, x = np.divmod(np.concatenate((first, first_under)), self.width)
        x_after = np.concatenate((last, last_under)) % self.width + 1
        self.under: npt.NDArray[np.bool_] = np.arange(len(x)) >= len(first)
        self.start: Int64Array = np.where(self.under, x_after, x)
        self.end: Int64Array = np.where(self.under, x, x_after)

    def above_in_column(self, y: Int64Array, x: Int64Array) -> Int64Array:
        """Finds the place of the last unit above y in column x. There is one."""
        rows, columns = np.divmod(self._at, self.width)
        wanted = np.zeros(self.width, bool)
        wanted[x] = True
        these = wanted[columns]
        rows, columns = rows[these], columns[these]
        stride = int(rows[-1]) + 2
        keys = np.sort(columns * stride + rows)
        found = keys[np.searchsorted(keys, x * stride + y) - 1]
        return np.asarray(found % stride * self.width + found // stride, np.int64)

    def _runs(self, side: UInt8Array) -> tuple[UInt8Array, Int64Array, Int64Array]:
        """Joins neighbouring units of a label on that side: label, first and last unit's place."""
        at = self._at
        if not len(at):
            return side, at, at
        breaks = (np.diff(at) != 1) | (side[1:] != side[:-1]) | (at[1:] % self.width == 0)
        begins = np.concatenate(([0], np.flatnonzero(breaks) + 1))
        ends = np.append(begins[1:], len(at)) - 1
        drawn = side[begins] != VOID
        begins, ends = begins[drawn], ends[drawn]
        return side[begins], at[begins], at[ends]


@dataclass(frozen=True, slots=True)
class Rings:
    """Lists label, area (negative of holes) and corners of each ring; those that touch themselves;
    `ring_of` each edge; the `highest` edge of each; `edges`."""

    label: list[int]
    area: list[float]
    corners: list[Ring]
    touching: frozenset[int]
    ring_of: Int64Array
    highest: Int64Array
    edges: Edges

    def simple(self, ring: int) -> list[Ring]:
        """Cuts it where it passes a point twice, so that no piece touches itself."""
        return _cut(self.corners[ring]) if ring in self.touching else [self.corners[ring]]


def rings_of(edges: Edges, height: int, width: int) -> Rings:
    count = len(edges.label)
    after, one, other = _successors(edges, height, width)
    order, offsets = _cycles(after)
    ring_of = np.empty(count, np.int64)
    sizes = np.diff(np.append(offsets, count))
    ring_of[order] = np.repeat(np.arange(len(offsets)), sizes)
    # Two corners for each edge, and behind the last of a ring its first again.
    start, end, y = edges.start[order], edges.end[order], edges.y[order]
    closed = np.empty((2 * count + len(offsets), 2), np.int32)
    at = 2 * np.arange(count) + np.repeat(np.arange(len(offsets)), sizes)
    closed[at, 0], closed[at + 1, 0] = start, end
    closed[at, 1] = closed[at + 1, 1] = y
    begins = 2 * offsets + np.arange(len(offsets))
    ends = begins + 2 * sizes
    closed[ends] = closed[begins]
    corners = [closed[a : b + 1] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
    # Of the lines of a ring, a horizontal one has y * (x0 - x1) below it, and a vertical one none.
    area = np.add.reduceat(y * (start - end), offsets) if count else y
    touching = ring_of[one[ring_of[one] == ring_of[other]]]
    highest = np.minimum.reduceat(y * count + order, offsets) % count if count else order
    return Rings(
        edges.label[order[offsets]].tolist(),
        area.tolist(),
        corners,
        frozenset(touching.tolist()),
        ring_of,
        highest,
        edges,
    )


def _successors(edges: Edges, height: int, width: int) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Finds, int64 [edges], the edge that the vertical line at the end of each leads to.

    And pairs of edges that meet at a point without such a line between them.
    """
    count = len(edges.label)
    x = np.concatenate((edges.start, edges.end))
    label, y = np.tile(edges.label, 2), np.tile(edges.y, 2)
    # Where two pixels of a class touch at a corner only, that of the upper one belongs to the
    # vertical line above, and so comes first.
    second = np.tile(~edges.under, 2)
    order = _order(2 * y + second, 2 * height + 1)
    order = order[_order(label[order], VOID)]
    order = order[_order(x[order], width)]
    one, other = order[0::2], order[1::2]
    mate = np.empty(2 * count, np.int64)
    mate[one], mate[other] = other, one
    points = ((label * np.int64(width + 1) + x) * (height + 1) + y)[order]
    twice = np.flatnonzero(points[1:] == points[:-1])
    return mate[count:], order[twice] % count, order[twice + 1] % count


def _order(keys: npt.NDArray[Any], largest: int) -> Int64Array:
    """Finds the stable order of whole numbers up to `largest`: numpy sorts those of 16 bits by
    their digits, in a third of the time that it takes to compare larger ones.
    """
    return np.argsort(keys.astype(np.min_scalar_type(largest)), kind="stable")


def _cycles(after: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Lists the elements cycle by cycle, and where each cycle begins: with its least element.

    By steps of doubled length, since one by one in Python they took a fifth of all the time.
    """
    least, jump = np.arange(len(after)), after
    rounds = 0
    while not np.array_equal(lesser := np.minimum(least, least.take(jump)), least):
        least, jump, rounds = lesser, jump.take(jump), rounds + 1
    # Of each element, the steps to the least one of its cycle.
    first = np.flatnonzero(least == np.arange(len(after)))
    jump, steps = after.copy(), np.ones(len(after), np.int64)
    jump[first], steps[first] = first, 0
    for _ in range(rounds):
        steps += steps.take(jump)
        jump = jump.take(jump)
    sizes = np.bincount(least, minlength=len(after))[first]
    offsets = np.cumsum(sizes) - sizes
    steps[first] = sizes
    ends, order = np.empty((2, len(after)), np.int64)
    ends[first] = offsets + sizes
    order[ends.take(least) - steps] = np.arange(len(after))
    return order, offsets


def _cut(ring: Ring) -> list[Ring]:
    pieces: list[Ring] = []
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for x, y in ring.tolist():
        point = (x, y)
        if point in place:
            begin = place[point]
            pieces.append(np.array([*path[begin:], point], np.int32))
            for passed in path[begin:]:
                del place[passed]
            del path[begin:]
        place[point] = len(path)
        path.append(point)
    return pieces
