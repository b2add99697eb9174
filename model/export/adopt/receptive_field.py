"""How far around a pixel its label may depend on the image, read off an exported graph.

With that number an image too large for memory can be cut into overlapping parts whose labels are
those of the whole image: away from its edges a network of convolutions, poolings and fixed
upsamplings does the same everywhere, as long as a part starts at a multiple of its stride.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from model.contract import Contract
from model.export.onnx_file import attributes

# Layers that look at one position: activations, sums of maps, casts, quantisation.
_SAME: Final = frozenset((
    "Abs", "Add", "BatchNormalization", "Cast", "Clip", "DequantizeLinear", "Div", "Dropout", "Elu",
    "Erf", "Exp", "Gelu", "Greater", "HardSigmoid", "HardSwish", "Identity", "LRN", "LeakyRelu",
    "Log", "Max", "Min", "Mul", "Neg", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu",
    "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh",
))  # fmt: skip
_OVER_CHANNELS: Final = {"ArgMax": 0, "Concat": -1, "LogSoftmax": -1, "Softmax": -1}
"""Layers of all channels of one position, and the axis where none is given."""


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """Says that cell i of a map depends on the pixels `stride * i + first` .. `stride * i + last`.

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

    def shifted(self, moves: Sequence[int]) -> ReceptiveField:
        """Moves cells: cell i is what cell i + move was, by the moves along height and width."""
        return self.moved(self.stride, self.stride * min(moves), self.stride * max(moves))

    def without(self, axis: int) -> ReceptiveField:
        """Drops an axis before height and width."""
        height, width = (place - (place > axis) for place in self.axes)
        return replace(self, axes=(height, width))


class UnboundedField(ValueError):
    """The graph has a layer whose field is unknown or the whole image; the message names it."""


@dataclass(frozen=True, slots=True)
class Halo:
    """Says how to cut an image: parts start at multiples of `stride` and have `halo_px` more, a
    multiple of it too, on every side."""

    halo_px: int
    stride: int


def halo_of(proto: onnx.ModelProto, contract: Contract) -> Halo:
    """Follow the label map's receptive field through the graph. Raises: UnboundedField."""
    walk = _Walk(proto.graph, contract.input.name)
    for node in proto.graph.node:
        walk.pass_through(node)
    label_map = walk.fields.get(contract.outputs.label_map)
    if label_map is None or label_map.stride != 1:
        raise UnboundedField("the label map does not have the image's size")
    stride = math.ceil(label_map.coarsest)
    farthest = max(0, math.ceil(-label_map.first), math.ceil(label_map.last))
    return Halo(-(-farthest // stride) * stride, stride)


class _Walk:
    """Follows the receptive field of each tensor, by its name."""

    def __init__(self, graph: onnx.GraphProto, image: str) -> None:
        self.fields = {image: ReceptiveField((1, 2))}
        self._constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}

    def pass_through(self, node: onnx.NodeProto) -> None:
        constants = self._constants
        if node.op_type == "Constant":
            constants[node.output[0]] = numpy_helper.to_array(attributes(node)["value"])
            return
        inputs = [self.fields[name] for name in node.input if name in self.fields]
        if inputs and node.op_type != "Shape":
            # Else sizes and constants: they say where the image ends, not what is in it.
            field = self._behind(node, _joined(node, inputs))
            self.fields.update(dict.fromkeys(node.output, field))

    def _behind(self, node: onnx.NodeProto, field: ReceptiveField) -> ReceptiveField:
        """Finds the field of what `node` makes of a map with this one."""
        given = attributes(node)
        match node.op_type:
            case kind if kind in _SAME:
                return field
            case kind if kind in _OVER_CHANNELS:
                axis = given.get("axis", _OVER_CHANNELS[kind])
                if axis < 0 or axis in field.axes:
                    raise _unbounded(node, "is not over the classes")
                gone = kind == "ArgMax" and not given.get("keepdims", 1)
                return field.without(axis) if gone else field
            case "Conv" | "MaxPool" | "AveragePool" | "ConvTranspose":
                return self._window(node, field, given)
            case "DepthToSpace":
                fine = field.stride / given["blocksize"]
                return field.moved(fine, -fine * (given["blocksize"] - 1), Fraction(0))
            case "Gather":
                return self._gather(node, field, given.get("axis", 0))
            case "Pad":
                return self._pad(node, field, given)
            case "Resize":
                return self._resize(node, field, given)
            case "Slice":
                return self._slice(node, field)
            case "Squeeze":
                return self._squeeze(node, field, given)
            case "Transpose" if "perm" in given:
                height, width = (list(given["perm"]).index(axis) for axis in field.axes)
                return replace(field, axes=(height, width))
        raise _unbounded(node, "may see every pixel")

    def _window(
        self, node: onnx.NodeProto, field: ReceptiveField, given: dict[str, Any]
    ) -> ReceptiveField:
        """Follows poolings and convolutions, also those that enlarge."""
        if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise _unbounded(node, "pads by the image's size")
        if "output_shape" in given:
            raise _unbounded(node, "has an output_shape")
        kernel = given.get("kernel_shape")
        if kernel is None:
            if node.input[1] not in self._constants:
                raise _unbounded(node, "has a kernel of unknown size")
            kernel = self._constants[node.input[1]].shape[2:]
        high, wide = given.get("strides", [1, 1])
        if high != wide:
            raise _unbounded(node, "has different strides per axis")
        pads = given.get("pads", [0, 0, 0, 0])
        dilations = given.get("dilations", [1, 1])
        reaches = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
        if node.op_type == "ConvTranspose":
            # Output j takes the cells i with 0 <= j + pad - stride * i <= kernel - 1.
            fine = field.stride / high
            first = min(pad - reach for pad, reach in zip(pads, reaches, strict=False))
            return field.moved(fine, fine * first, fine * max(pads[:2]))
        last = max(reach - pad for pad, reach in zip(pads, reaches, strict=False))
        return field.moved(field.stride * high, -field.stride * max(pads[:2]), field.stride * last)

    def _slice(self, node: onnx.NodeProto, field: ReceptiveField) -> ReceptiveField:
        """Follows a crop from a fixed start; where it ends is the image's size."""
        names = [*node.input, "", ""]
        starts, axes = self._constants.get(names[1]), self._constants.get(names[3])
        if starts is None or axes is None:
            raise _unbounded(node, "does not start at a fixed place")
        steps = self._constants.get(names[4], np.ones(len(axes), np.int64))
        moves = {}
        for start, axis, step in zip(starts, axes, steps, strict=True):
            if int(axis) >= 0 and int(axis) not in field.axes:
                continue  # channels, as from RGB to BGR
            if axis < 0 or start < 0 or step != 1:
                raise _unbounded(node, "does not start at a fixed place")
            moves[int(axis)] = int(start)
        return field.shifted([moves.get(axis, 0) for axis in field.axes])

    def _pad(
        self, node: onnx.NodeProto, field: ReceptiveField, given: dict[str, Any]
    ) -> ReceptiveField:
        pads = self._constants.get(node.input[1])
        constant = given.get("mode", b"constant") == b"constant"
        if pads is None or not constant or len(node.input) > 3 and node.input[3]:
            raise _unbounded(node, "is not by a fixed number of constants")
        return field.shifted([-int(pads[axis]) for axis in field.axes])

    def _resize(
        self, node: onnx.NodeProto, field: ReceptiveField, given: dict[str, Any]
    ) -> ReceptiveField:
        """Take only a fixed factor, half-pixel bilinear: each pixel lies between two cells."""
        scales = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        rule = given.get("coordinate_transformation_mode", b"half_pixel")
        linear = given.get("mode", b"nearest") == b"linear" and not given.get("antialias", 0)
        halves = rule in (b"half_pixel", b"pytorch_half_pixel")
        if scales is None or not len(scales) or not linear or not halves:
            raise _unbounded(node, "is not bilinear by a fixed factor")
        high, wide = (Fraction(float(scales[axis])) for axis in field.axes)
        if high != wide or high < 1:
            raise _unbounded(node, "shrinks, or differs per axis")
        fine = field.stride / high
        centre = (fine - field.stride) / 2
        return field.moved(fine, centre - field.stride, centre + field.stride)

    def _gather(self, node: onnx.NodeProto, field: ReceptiveField, axis: int) -> ReceptiveField:
        """Follows one channel, or channels in another order."""
        index = self._constants.get(node.input[1])
        if index is None or axis < 1 or axis in field.axes:
            raise _unbounded(node, "is not of channels")
        return field if np.ndim(index) else field.without(axis)

    def _squeeze(
        self, node: onnx.NodeProto, field: ReceptiveField, given: dict[str, Any]
    ) -> ReceptiveField:
        axes = self._constants.get(node.input[1]) if len(node.input) > 1 else given.get("axes")
        if axes is None or len(axes) != 1 or axes[0] < 0 or axes[0] in field.axes:
            raise _unbounded(node, "is not of channels")
        return field.without(int(axes[0]))


def _joined(node: onnx.NodeProto, inputs: Sequence[ReceptiveField]) -> ReceptiveField:
    """Joins what the maps of several inputs see. Raises: UnboundedField."""
    if len({(field.axes, field.stride) for field in inputs}) > 1:
        raise _unbounded(node, "joins maps of different strides")
    return replace(
        inputs[0],
        first=min(field.first for field in inputs),
        last=max(field.last for field in inputs),
        coarsest=max(field.coarsest for field in inputs),
    )


def _unbounded(node: onnx.NodeProto, why: str) -> UnboundedField:
    return UnboundedField(f"{node.op_type} ({node.name or node.output[0]}) {why}")
