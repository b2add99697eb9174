"""The numbers that a graph computes from the sizes of its tensors, for pictures of given sizes.

torch's exporter writes crops and shapes as such arithmetic. A number is an int64 array with one row
for each of the pictures that are tried out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Array = npt.NDArray[Any]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


def evaluate(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> Array | None:
    """What `node` gives for these numbers, of one picture; None if it is not arithmetic on them.

    inputs: None for one that is left out.
    """
    function = _FUNCTIONS.get(node.op_type)
    if function is None or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    return np.asarray(function(attributes(node), *inputs))


def shape_of(shape: Array, given: Mapping[str, Any]) -> Array:
    """What `Shape` with the attributes `given` answers of a tensor of this shape."""
    return shape[given.get("start", 0) : given.get("end", len(shape))]


def _divide(given: Mapping[str, Any], a: Array, b: Array) -> Array:
    if np.issubdtype(np.result_type(a, b), np.integer):
        return np.trunc(a / b).astype(np.int64)  # ONNX rounds towards zero
    return a / b


def _gather(given: Mapping[str, Any], data: Array, index: Array) -> Array:
    return np.take(data, index, axis=given.get("axis", 0))


def _reshape(given: Mapping[str, Any], data: Array, shape: Array) -> Array:
    return data.reshape([int(side) for side in shape])


def _squeeze(given: Mapping[str, Any], data: Array, axes: Array | None = None) -> Array:
    return np.squeeze(data, None if axes is None else tuple(int(axis) for axis in axes))


def _unsqueeze(given: Mapping[str, Any], data: Array, axes: Array) -> Array:
    return np.expand_dims(data, tuple(int(axis) for axis in axes))


def _cast(given: Mapping[str, Any], data: Array) -> Array:
    return data.astype(onnx.helper.tensor_dtype_to_np_dtype(given["to"]))


def _slice(
    given: Mapping[str, Any],
    data: Array,
    starts: Array,
    ends: Array,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    step = 1 if steps is None else int(steps[0])
    return data[int(starts[0]) : int(ends[0]) : step]  # of a shape, which has one axis


_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Add": lambda given, a, b: a + b,
    "Cast": _cast,
    "Ceil": lambda given, a: np.ceil(a),
    "Concat": lambda given, *parts: np.concatenate(parts, given["axis"]),
    "Constant": lambda given: onnx.numpy_helper.to_array(given["value"]),
    "Div": _divide,
    "Floor": lambda given, a: np.floor(a),
    "Gather": _gather,
    "Identity": lambda given, a: a,
    "Max": lambda given, *parts: np.maximum.reduce(np.broadcast_arrays(*parts)),
    "Min": lambda given, *parts: np.minimum.reduce(np.broadcast_arrays(*parts)),
    "Mod": lambda given, a, b: np.mod(a, b),
    "Mul": lambda given, a, b: a * b,
    "Neg": lambda given, a: -a,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": lambda given, a, b: a - b,
    "Unsqueeze": _unsqueeze,
}
