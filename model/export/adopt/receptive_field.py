"""How far around a pixel its label may depend on the picture, read off an exported graph.

With that number a picture too large for memory can be cut into overlapping parts whose labels are
those of the whole picture: away from its edges a network of convolutions, poolings and fixed
upsamplings does the same everywhere, as long as a part starts at a multiple of its stride.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from model.contract import Contract
from model.export.onnx_file import attributes


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """Cell i of a map depends on the pixels `stride * i + first` .. `stride * i + last`.

    Along one axis; the larger of height and width where they differ. `axes`: which of the tensor's
    axes are height and width. `coarsest` is the largest stride on the way to this map.
    """

    axes: tuple[int, int]
    stride: Fraction = Fraction(1)
    first: Fraction = Fraction(0)
    last: Fraction = Fraction(0)
    coarsest: Fraction = Fraction(1)

    def moved(self, stride: Fraction, first: Fraction, last: Fraction) -> ReceptiveField:
        return ReceptiveField(
            self.axes, stride, self.first + first, self.last + last, max(self.coarsest, stride)
        )


class UnboundedField(ValueError):
    """The graph has a layer whose field is unknown or the whole picture; the message names it."""


@dataclass(frozen=True, slots=True)
class Halo:
    """Parts of an image start at multiples of `stride` and have `halo_px` more, a multiple of it
    too, on every side."""

    halo_px: int
    stride: int


def halo_of(proto: onnx.ModelProto, contract: Contract) -> Halo:
    """Follow the label map's receptive field through the graph. Raises: UnboundedField."""
    graph = proto.graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    fields = {contract.input.name: ReceptiveField((1, 2))}
    shapes: dict[str, list[bool]] = {}  # made of sizes: which of them are constants
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(attributes(node)["value"])
            continue
        inputs = [fields[name] for name in node.input if name in fields]
        if node.op_type == "Concat" and all(name in constants for name in node.input):
            parts = [np.atleast_1d(constants[name]) for name in node.input]
            constants[node.output[0]] = np.concatenate(parts)
            continue
        if node.op_type == "Concat" and not inputs:
            shapes[node.output[0]] = [name in constants for name in node.input]
        if not inputs or node.op_type == "Shape":
            continue  # sizes and constants: they say where the picture ends, not what is in it
        if node.op_type == "Reshape":
            fields[node.output[0]] = _reshape(node, inputs[0], shapes.get(node.input[1], []))
            continue
        handle = _HANDLERS.get(node.op_type)
        if handle is None:
            raise UnboundedField(
                f"{node.op_type} ({node.name or node.output[0]}) may see every pixel"
            )
        for name in node.output:
            fields[name] = handle(node, inputs, constants)
    label_map = fields.get(contract.outputs.label_map)
    if label_map is None or label_map.stride != 1:
        raise UnboundedField("the label map does not have the picture's size")
    stride = math.ceil(label_map.coarsest)
    farthest = max(0, math.ceil(-label_map.first), math.ceil(label_map.last))
    return Halo(-(-farthest // stride) * stride, stride)


Handler = Callable[[onnx.NodeProto, list[ReceptiveField], Mapping[str, Any]], ReceptiveField]


def _same(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    """Layers that look at one position: activations, sums of maps, casts, quantisation."""
    first = inputs[0]
    for other in inputs[1:]:
        if (other.axes, other.stride) != (first.axes, first.stride):
            raise UnboundedField(
                f"{node.op_type} ({node.output[0]}) joins maps of different strides"
            )
    return ReceptiveField(
        first.axes,
        first.stride,
        min(field.first for field in inputs),
        max(field.last for field in inputs),
        max(field.coarsest for field in inputs),
    )


def _concat(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    axis = attributes(node)["axis"]
    if axis < 0 or axis in inputs[0].axes:
        raise UnboundedField(f"Concat ({node.output[0]}) joins maps side by side")
    return _same(node, inputs, constants)


def _convolution(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    """Conv and the poolings."""
    field, given = inputs[0], attributes(node)
    _explicit_padding(node, given)
    kernel, stride, dilation, pad = _windows(node, given, constants)
    moves = []
    for axis in range(2):
        first = -field.stride * pad[axis]
        moves.append((first, first + field.stride * (kernel[axis] - 1) * dilation[axis]))
    if stride[0] != stride[1]:
        raise UnboundedField(f"{node.op_type} ({node.output[0]}) has different strides per axis")
    first, last = min(m[0] for m in moves), max(m[1] for m in moves)
    return field.moved(field.stride * stride[0], first, last)


def _transposed(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    """Output j takes the cells i with 0 <= j + pad - stride * i <= kernel - 1."""
    field, given = inputs[0], attributes(node)
    _explicit_padding(node, given)
    if "output_shape" in given:
        raise UnboundedField(f"ConvTranspose ({node.output[0]}) has an output_shape")
    kernel, stride, dilation, pad = _windows(node, given, constants)
    if stride[0] != stride[1]:
        raise UnboundedField(f"ConvTranspose ({node.output[0]}) has different strides per axis")
    fine = field.stride / stride[0]
    first = min(fine * (pad[a] - (kernel[a] - 1) * dilation[a]) for a in range(2))
    return field.moved(fine, first, max(fine * pad[a] for a in range(2)))


def _slice(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    """A crop from a fixed start; where it ends is the picture's size."""
    field = inputs[0]
    names = list(node.input) + [""] * (5 - len(node.input))
    starts, axes = constants.get(names[1]), constants.get(names[3])
    if starts is None or axes is None:
        raise UnboundedField(f"Slice ({node.output[0]}) does not start at a fixed place")
    steps = constants.get(names[4], np.ones(len(axes), np.int64))
    moves = []
    for start, axis, step in zip(starts, axes, steps, strict=True):
        if int(axis) >= 0 and int(axis) not in field.axes:
            continue  # channels, as from RGB to BGR
        if axis < 0 or start < 0 or step != 1:
            raise UnboundedField(f"Slice ({node.output[0]}) does not start at a fixed place")
        moves.append(field.stride * int(start))
    # An axis that is not cut stays where it is.
    moves += [Fraction(0)] * (2 - len(moves))
    return field.moved(field.stride, min(moves), max(moves))


def _pad(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    field = inputs[0]
    pads = constants.get(node.input[1])
    mode = attributes(node).get("mode", b"constant")
    if pads is None or mode != b"constant" or len(node.input) > 3 and node.input[3]:
        raise UnboundedField(f"Pad ({node.output[0]}) is not by a fixed number of constants")
    moves = [-field.stride * int(pads[axis]) for axis in field.axes]
    return field.moved(field.stride, min(moves), max(moves))


def _resize(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    """Take only a fixed factor, half-pixel bilinear: each pixel lies between two cells."""
    field, given = inputs[0], attributes(node)
    scales = constants.get(node.input[2]) if len(node.input) > 2 else None
    mode = given.get("mode", b"nearest")
    rule = given.get("coordinate_transformation_mode", b"half_pixel")
    if (
        scales is None
        or len(scales) == 0
        or mode != b"linear"
        or rule not in (b"half_pixel", b"pytorch_half_pixel")
        or given.get("antialias", 0)
    ):
        raise UnboundedField(f"Resize ({node.output[0]}) is not bilinear by a fixed factor")
    factors = [Fraction(float(scales[axis])) for axis in field.axes]
    if factors[0] != factors[1] or factors[0] < 1:
        raise UnboundedField(f"Resize ({node.output[0]}) shrinks, or differs per axis")
    fine = field.stride / factors[0]
    centre = (fine - field.stride) / 2
    return field.moved(fine, centre - field.stride, centre + field.stride)


def _transpose(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    order, field = list(attributes(node).get("perm", ())), inputs[0]
    if not order:
        raise UnboundedField(f"Transpose ({node.output[0]}) does not say where its axes go")
    axes = (order.index(field.axes[0]), order.index(field.axes[1]))
    return ReceptiveField(axes, *_place(field))


def _reshape(node: onnx.NodeProto, field: ReceptiveField, wanted: Sequence[bool]) -> ReceptiveField:
    """Only what splits or joins channels, as [N,C*k,h,w] -> [N,C,k,h,w], keeps places apart.

    wanted: for each place of the new shape whether its size is a constant. Recognised by sizes of
    the picture in the last two places and nowhere else but in the first.
    """
    moves = list(wanted[-2:]) != [False, False] or not all(wanted[1:-2])
    if len(wanted) < 3 or moves or field.axes[1] != field.axes[0] + 1:
        raise UnboundedField(f"Reshape ({node.output[0]}) may move pixels")
    return ReceptiveField((len(wanted) - 2, len(wanted) - 1), *_place(field))


def _gather(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    """One channel, or channels in another order."""
    field, axis = inputs[0], attributes(node).get("axis", 0)
    index = constants.get(node.input[1])
    if index is None or axis < 1 or axis in field.axes:
        raise UnboundedField(f"Gather ({node.output[0]}) is not of channels")
    return field if np.ndim(index) else _without(field, axis)


def _depth_to_space(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    block = attributes(node)["blocksize"]
    fine = inputs[0].stride / block
    return inputs[0].moved(fine, -fine * (block - 1), Fraction(0))


def _space_to_depth(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    block, stride = attributes(node)["blocksize"], inputs[0].stride
    return inputs[0].moved(stride * block, Fraction(0), stride * (block - 1))


def _without(field: ReceptiveField, axis: int) -> ReceptiveField:
    """After an axis before height and width is gone."""
    axes = (field.axes[0] - (field.axes[0] > axis), field.axes[1] - (field.axes[1] > axis))
    return ReceptiveField(axes, *_place(field))


def _place(field: ReceptiveField) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    return field.stride, field.first, field.last, field.coarsest


def _arg_max(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    field, given = inputs[0], attributes(node)
    axis = given.get("axis", 0)
    if axis < 0 or axis in field.axes:
        raise UnboundedField(f"{node.op_type} ({node.output[0]}) is not over the classes")
    if given.get("keepdims", 1):
        return field
    return _without(field, axis)


def _softmax(
    node: onnx.NodeProto, inputs: list[ReceptiveField], constants: Mapping[str, Any]
) -> ReceptiveField:
    axis = attributes(node).get("axis", -1)
    if axis < 0 or axis in inputs[0].axes:
        raise UnboundedField(f"{node.op_type} ({node.output[0]}) is not over the classes")
    return inputs[0]


_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(
        (
            "Abs", "Add", "BatchNormalization", "Cast", "Clip", "DequantizeLinear", "Div",
            "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LRN",
            "LeakyRelu", "Max", "Min", "Mul", "Neg", "PRelu", "Pow", "QuantizeLinear",
            "Reciprocal", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh",
        ),
        _same,
    ),
    "ArgMax": _arg_max,
    "AveragePool": _convolution,
    "Concat": _concat,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "DepthToSpace": _depth_to_space,
    "Gather": _gather,
    "MaxPool": _convolution,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Softmax": _softmax,
    "SpaceToDepth": _space_to_depth,
    "Transpose": _transpose,
}  # fmt: skip


def _explicit_padding(node: onnx.NodeProto, given: Mapping[str, Any]) -> None:
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise UnboundedField(f"{node.op_type} ({node.output[0]}) pads by the picture's size")


def _windows(
    node: onnx.NodeProto, given: Mapping[str, Any], constants: Mapping[str, Any]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, stride, dilation and the padding before the first cell, for height and width."""
    kernel = given.get("kernel_shape")
    if kernel is None:
        weight = constants.get(node.input[1])
        if weight is None:
            raise UnboundedField(f"{node.op_type} ({node.output[0]}) has a kernel of unknown size")
        kernel = weight.shape[2:]
    return (
        list(kernel),
        list(given.get("strides", [1, 1])),
        list(given.get("dilations", [1, 1])),
        list(given.get("pads", [0, 0, 0, 0]))[:2],
    )
