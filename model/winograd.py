"""Convolutions of an ONNX graph with fewer multiplications, by Winograd's F(2x2,3x3).

Two neighbouring outputs of a 3-tap filter take four products in place of six, on sums and
differences of the inputs; in two dimensions 16 in place of 36. A kernel of 7 is made of such
filters: taps 0 to 2, tap 3 and taps 4 to 6 begin an even number of cells apart, so that they share
the transformed input, and a lone tap in the middle of its filter needs two of the four products.
That makes 10 products in place of 14 along an axis, 100 in place of 196 for 2x2 outputs.

In 8 bits the sums get ranges of their own, so that little is lost. Whether it is faster is another
matter: the sums must be cheap beside the products, as they are with many channels (bench/LOG.md).

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308,
section 4.1, whose letters the transforms have here.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Float32Array = npt.NDArray[np.float32]

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
"""Taps of a filter -> its four products' weights."""

_INPUT = (((0, 2), (1, -1)), ((1, 2), (1, 1)), ((1, 2), (-1, 1)), ((1, 3), (1, -1)))
"""Of B^T: which two of the four inputs each product takes, and with which sign."""

_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))
"""A^T: the two outputs as sums of the products."""


class WinogradError(ValueError):
    """A layer cannot be computed like this; the message says why."""


def use_winograd(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[str]:
    """Replace `node`, a convolution, by nodes that give the same values up to rounding.

    Square kernels of 3, 7, 11, ... taps, stride 1, no dilation, one group. Returns the names of the
    convolutions that multiply in its stead. Raises: WinogradError.
    """
    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    held = {tensor.name: tensor for tensor in graph.initializer}
    taps = _taps(node, given, held.get(node.input[1]))
    kernel, inputs = taps.shape[2], taps.shape[1]
    pads = list(given.get("pads", [0, 0, 0, 0]))
    stem = node.input[1].removesuffix(".weight") + ".winograd"
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []

    def add(kind: str, sources: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, sources, [name], name=name, **attributes))
        return name

    def hold(array: npt.NDArray[Any], name: str) -> str:
        tensors.append(numpy_helper.from_array(array, name))
        return name

    products: dict[tuple[int, int], str] = {}
    convolutions = []
    for rows, columns in product(range(4), range(4)):
        at = f"{stem}.{rows}{columns}"
        sum_of, step, padding = _input_sum(pads, rows, columns)
        transformed = add(
            "Conv",
            [node.input[0], hold(np.tile(sum_of, (inputs, 1, 1, 1)), f"{at}.sum.weight")],
            f"{at}.sum",
            group=inputs,
            kernel_shape=list(sum_of.shape),
            strides=[2, 2],
            dilations=step,
            pads=padding,
        )
        filters, dilations = _filters(taps, rows, columns)
        products[rows, columns] = add(
            "Conv",
            [transformed, hold(filters, f"{at}.weight")],
            f"{at}.product",
            kernel_shape=list(filters.shape[2:]),
            dilations=dilations,
        )
        convolutions += [transformed, products[rows, columns]]
    halves = {
        (down, columns): _signed_sum(
            add, f"{stem}.row{down}{columns}", [products[r, columns] for r in range(4)], down
        )
        for down, columns in product(range(2), range(4))
    }
    phases = [
        _signed_sum(add, f"{stem}.phase{down}{across}", [halves[down, c] for c in range(4)], across)
        for down, across in product(range(2), range(2))
    ]
    joined = add("Concat", phases, f"{stem}.phases", axis=1)
    spread = add("DepthToSpace", [joined], f"{stem}.cells", blocksize=2, mode="DCR")
    # An odd number of rows or columns has one too many.
    size = add("Shape", [node.input[0]], f"{stem}.size", start=2, end=4)
    grown = np.array([pads[axis] + pads[2 + axis] - kernel + 1 for axis in range(2)], np.int64)
    ends = add("Add", [size, hold(grown, f"{stem}.grown")], f"{stem}.ends")
    starts = hold(np.zeros(2, np.int64), f"{stem}.starts")
    axes = hold(np.array([2, 3], np.int64), f"{stem}.axes")
    cut = add("Slice", [spread, starts, ends, axes], f"{stem}.cut")
    bias = (
        numpy_helper.to_array(held[node.input[2]]) if len(node.input) > 2 else np.zeros(len(taps))
    )
    biased = hold(bias.astype(np.float32).reshape(1, -1, 1, 1), f"{stem}.bias")
    nodes.append(helper.make_node("Add", [cut, biased], list(node.output), name=f"{stem}.sum"))

    place = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, new in enumerate(nodes):
        graph.node.insert(place + offset, new)
    graph.initializer.extend(tensors)
    for name in node.input[1:]:
        if not any(name in other.input for other in graph.node):
            graph.initializer.remove(held[name])
    return convolutions


def _input_sum(
    pads: list[int], rows: int, columns: int
) -> tuple[Float32Array, list[int], list[int]]:
    """Of each channel alone, with stride 2: weights [a,b], dilations and padding."""
    along, steps, before, after = [], [], [], []
    for axis, place in ((0, rows), (1, columns)):
        (first, last), signs = _INPUT[place]
        if first <= pads[axis]:  # cells before the first are skipped by padding less
            along.append(np.array(signs))
            steps.append(last - first)
            before.append(pads[axis] - first)
        else:
            along.append(np.zeros(last + 1))
            along[-1][[first, last]] = signs
            steps.append(1)
            before.append(pads[axis])
        # A row more, which an odd number of rows needs to fill its last tile.
        after.append(pads[2 + axis] + 1 - (3 - last))
    return np.outer(*along).astype(np.float32), steps, [*before, *after]


def _filters(taps: Float32Array, rows: int, columns: int) -> tuple[Float32Array, list[int]]:
    """Weights [outputs,inputs,a,b] of one of the 16 products over the tiles, and the dilations."""
    found = taps.astype(np.float64)
    dilations = []
    for axis, place in ((2, rows), (3, columns)):
        parts = []
        for tile in range((taps.shape[axis] - 1) // 2):
            part = np.take(found, range(2 * tile, 2 * tile + 3), axis)
            factors = _G[place]
            if tile % 2:  # its outer taps are its neighbours'
                factors = factors * [0, 1, 0]
            if factors.any():
                parts.append(np.tensordot(part, factors, (axis, 0)))
        lone_needed = place in (1, 2)
        dilations.append(1 if lone_needed or len(parts) == 1 else 2)
        found = np.stack(parts, axis)
    return np.ascontiguousarray(found, np.float32), dilations


def _signed_sum(add: Any, name: str, parts: list[str], which: int) -> str:
    """Of the four parts along one axis, as output `which` takes them."""
    total = ""
    chosen = [(part, sign) for part, sign in zip(parts, _OUTPUT[which], strict=True) if sign]
    for index, (part, sign) in enumerate(chosen):
        kind = "Add" if sign > 0 else "Sub"
        last = index == len(chosen) - 1
        total = add(kind, [total, part], name if last else f"{name}.{index}") if total else part
    return total


def _taps(
    node: onnx.NodeProto, given: dict[str, Any], weight: onnx.TensorProto | None
) -> Float32Array:
    """The layer's weights [outputs,inputs,k,k]. Raises: WinogradError if it is none for us."""
    if node.op_type != "Conv" or weight is None or len(weight.dims) != 4:
        raise WinogradError(
            f"{node.name} is no two-dimensional convolution with weights in the file"
        )
    sides = list(weight.dims[2:])
    plain = (
        all(stride == 1 for stride in given.get("strides", [1, 1]))
        and all(step == 1 for step in given.get("dilations", [1, 1]))
        and given.get("group", 1) == 1
        and given.get("auto_pad", b"NOTSET") == b"NOTSET"
    )
    if not plain or sides[0] != sides[1] or sides[0] % 4 != 3:
        raise WinogradError(
            f"{node.name} has a kernel of {sides[0]}x{sides[1]}: Winograd's form is for square "
            "kernels of 3, 7 or 11 taps, with stride 1, no dilation and one group"
        )
    return numpy_helper.to_array(weight).astype(np.float32)
