"""Layers that move, cut or add places or channels, and compute nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from model.ragged.maps import BATCH, Beyond, Handler, Layer, Result, without


def _gather(layer: Layer) -> Result:
    """One channel, or channels in another order."""
    first, index, axis = layer.maps[0], layer.constant(1), layer.given.get("axis", 0)
    axis = axis + first.rank if axis < 0 else axis
    if index is None or index.ndim > 1 or axis == 0 or axis in first.axes:
        raise layer.refused("is not of channels")
    return Result(first if index.ndim else without(first, axis))


def _squeeze(layer: Layer) -> Result:
    found, axes = layer.maps[0], layer.constant(1)
    if axes is None:
        raise layer.refused("does not say which axis it drops")
    dropped = {int(axis) % found.rank for axis in axes}
    if 0 in dropped or dropped & set(found.axes):
        raise layer.refused("drops the batch, height or width")
    for axis in sorted(dropped, reverse=True):
        found = without(found, axis)
    return Result(found)


def _transpose(layer: Layer) -> Result:
    order, first = list(layer.given.get("perm", ())), layer.maps[0]
    if not order or order[0] != 0:
        raise layer.refused("does not leave the batch in front")
    axes = (order.index(first.axes[0]), order.index(first.axes[1]))
    return Result(replace(first, axes=axes))


def _reshape(layer: Layer) -> Result:
    """Only what splits or joins channels, as [N,C*k,h,w] -> [N,C,k,h,w], keeps places apart."""
    first, name = layer.maps[0], layer.node.input[1]
    shapes = layer.numbers.get(name, layer.constants.get(name))
    if shapes is None or first.axes != (first.rank - 2, first.rank - 1):
        raise layer.refused("may move pixels")
    shapes = np.broadcast_to(shapes, (len(first.sizes), np.shape(shapes)[-1]))
    batch, channels = shapes[:, 0], shapes[:, 1:-2]
    if (
        not np.array_equal(shapes[:, -2:], first.sizes)
        or not np.isin(batch, (0, BATCH)).all()
        or (channels != channels[:1]).any()
    ):
        raise layer.refused("may move pixels")
    rank = shapes.shape[1]
    return Result(replace(first, axes=(rank - 2, rank - 1), rank=rank))


def _depth_to_space(layer: Layer) -> Result:
    first = layer.maps[0]
    return Result(replace(first, sizes=first.sizes * layer.given["blocksize"]))


def _slice(layer: Layer) -> Result:
    """A crop from a fixed start; where it ends may follow from the picture's size."""
    first = layer.maps[0]
    starts, axes, steps = layer.constant(1), layer.constant(3), layer.constant(4)
    name = layer.node.input[2]
    ends = layer.numbers.get(name, layer.constants.get(name))
    if starts is None or axes is None or ends is None:
        raise layer.refused("does not say where it starts and ends")
    ends = np.broadcast_to(ends, (len(first.sizes), len(axes)))
    steps = np.ones(len(axes), np.int64) if steps is None else steps
    sizes, zero = first.sizes.copy(), first.zero
    for place, axis in enumerate(axes):
        axis = int(axis) % first.rank
        if axis == 0:
            raise layer.refused("takes a part of the batch")
        if axis not in first.axes:
            continue
        side = first.axes.index(axis)
        start, end, before = int(starts[place]), ends[:, place], sizes[:, side].copy()
        if start < 0 or steps[place] != 1:
            raise layer.refused("does not start at a fixed place")
        end = np.minimum(np.where(end < 0, end + before, end), before)
        sizes[:, side] = np.maximum(end - start, 0)
        # Cut behind, it ends elsewhere in a larger tensor, and goes on with the picture's cells.
        zero = zero and bool((end == before).all())
    return Result(replace(first, sizes=sizes, zero=zero))


def _pad(layer: Layer) -> Result:
    first, given = layer.maps[0], layer.given
    pads, value, axes = layer.constant(1), layer.constant(2), layer.constant(3)
    if pads is None or given.get("mode", b"constant") != b"constant":
        raise layer.refused("does not pad by a fixed number of zeros")
    known = range(first.rank) if axes is None else [int(axis) % first.rank for axis in axes]
    before = {axis: int(pads[place]) for place, axis in enumerate(known)}
    after = {axis: int(pads[len(before) + place]) for place, axis in enumerate(known)}
    if before.get(0, 0) or after.get(0, 0):
        raise layer.refused("pads the batch")
    zeros = value is None or not value.any()
    b = np.array([before.get(axis, 0) for axis in first.axes])
    a = np.array([after.get(axis, 0) for axis in first.axes])
    if not zeros and (b.any() or a.any()):
        raise layer.refused("does not pad by a fixed number of zeros")
    grows = bool((a > 0).any())
    zero = (first.zero or grows) and zeros and bool((a >= 0).all())
    padded = replace(first, sizes=first.sizes + b + a, zero=zero, positive=first.positive and zeros)
    return Result(padded, Beyond.ZERO if grows else Beyond.ANYTHING)


LAYOUT: dict[str, Handler] = {
    "DepthToSpace": _depth_to_space,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
}
