"""Layers that look at one place of a picture at a time: what they make of zeros, and of signs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import TensorProto

from model.ragged.maps import Array, Handler, Layer, Result, alike, channel_axis, without


def _zero_stays(layer: Layer) -> Result:
    """f(0) = 0."""
    return Result(replace(alike(layer), positive=False))


def _zero_goes(layer: Layer) -> Result:
    return Result(replace(alike(layer), zero=False, positive=False))


def _batch_norm(layer: Layer) -> Result:
    """Its numbers are one for each channel, which is not where they would be broadcast to."""
    return Result(replace(layer.maps[0], zero=False, positive=False))


def _keeps(layer: Layer) -> Result:
    """Signs too."""
    return Result(alike(layer))


def _relu(layer: Layer) -> Result:
    return Result(replace(alike(layer), positive=True))


def _above_zero(layer: Layer) -> Result:
    """As exp: positive, and not zero at zero."""
    return Result(replace(alike(layer), zero=False, positive=True))


def _clip(layer: Layer) -> Result:
    low, high = layer.constant(1), layer.constant(2)
    first = alike(layer)
    holds_zero = low is None or bool((low <= 0).all())
    holds_zero = holds_zero and (high is None or bool((high >= 0).all()))
    positive = low is not None and bool((low >= 0).all())
    return Result(replace(first, zero=first.zero and holds_zero, positive=positive))


def _cast(layer: Layer) -> Result:
    return Result(replace(alike(layer), dtype=layer.given["to"]))


def _sum(layer: Layer) -> Result:
    """Add and Sub."""
    joined, numbers = alike(layer), _numbers(layer)
    zero = all(each.zero for each in layer.maps) and all((value == 0).all() for value in numbers)
    positive = layer.node.op_type == "Add" and all(each.positive for each in layer.maps)
    positive = positive and all((value >= 0).all() for value in numbers)
    return Result(replace(joined, zero=zero, positive=positive))


def _product(layer: Layer) -> Result:
    """Mul, and Div by a number; finite ones, as zero times infinity would not be zero."""
    joined, numbers = alike(layer), _numbers(layer)
    divides = layer.node.op_type == "Div"
    if divides and len(layer.maps) == 1 and layer.node.input[0] in layer.constants:
        zero = False
    elif divides and len(layer.maps) == 2:
        zero = False  # nought by nought
    else:
        zero = all(each.zero for each in layer.maps)
        zero = zero and all(np.isfinite(1 / value if divides else value).all() for value in numbers)
    square = len(set(layer.node.input)) == 1
    positive = all(each.positive for each in layer.maps)
    positive = positive and all((value >= 0).all() for value in numbers)
    return Result(replace(joined, zero=zero, positive=positive or (square and not divides)))


def _power(layer: Layer) -> Result:
    base, exponent = alike(layer), layer.constant(1)
    if exponent is None or exponent.size != 1:
        raise layer.refused("is to a power that is not in the file")
    value = float(exponent.reshape(()))
    even = value > 0 and value % 2 == 0
    return Result(replace(base, zero=base.zero and value > 0, positive=base.positive or even))


def _numbers(layer: Layer) -> list[Array]:
    return [layer.constants[name] for name in layer.node.input if name in layer.constants]


def _concat(layer: Layer) -> Result:
    channel_axis(layer)
    joined = alike(layer)
    if len(layer.maps) < len(layer.node.input):
        raise layer.refused("joins a map and numbers")
    return Result(
        replace(
            joined,
            zero=all(each.zero for each in layer.maps),
            positive=all(each.positive for each in layer.maps),
        )
    )


def _split(layer: Layer) -> Result:
    channel_axis(layer)
    return Result(layer.maps[0])


def _softmax(layer: Layer) -> Result:
    if "axis" not in layer.given and layer.maps[0].axes[1] == layer.maps[0].rank - 1:
        raise layer.refused("is not over the channels")
    channel_axis(layer)
    return _above_zero(layer) if layer.node.op_type == "Softmax" else _zero_goes(layer)


def _arg_max(layer: Layer) -> Result:
    given, first = layer.given, layer.maps[0]
    axis = given.get("axis", 0)
    if axis == 0:
        raise layer.refused("is not over the channels")
    axis = channel_axis(layer)
    found = replace(first, dtype=TensorProto.INT64, zero=False, positive=True)
    return Result(found if given.get("keepdims", 1) else without(found, axis))


POINTWISE: dict[str, Handler] = {
    **dict.fromkeys(("Dropout", "Identity", "LRN", "Sqrt"), _keeps),
    **dict.fromkeys(("Abs", "Relu"), _relu),
    **dict.fromkeys(
        ("Celu", "Elu", "Erf", "Gelu", "HardSwish", "LeakyRelu", "Mish", "Neg", "PRelu", "Selu",
         "Sign", "Softsign", "Tanh"),
        _zero_stays,
    ),
    **dict.fromkeys(("Exp", "HardSigmoid", "Sigmoid", "Softplus"), _above_zero),
    **dict.fromkeys(("Log", "Max", "Min", "Reciprocal"), _zero_goes),
    "Add": _sum,
    "ArgMax": _arg_max,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Div": _product,
    "LogSoftmax": _softmax,
    "Mul": _product,
    "Pow": _power,
    "Softmax": _softmax,
    "Split": _split,
    "Sub": _sum,
}  # fmt: skip
