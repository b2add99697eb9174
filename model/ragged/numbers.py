"""The numbers that a graph computes from the sizes of its tensors, for pictures of given sizes.

torch's exporter writes crops and shapes as such arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

Array = npt.NDArray[Any]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def evaluator(
    node: onnx.NodeProto, opsets: Sequence[onnx.OperatorSetIdProto]
) -> Callable[[Sequence[Array]], Array | None]:
    """What `node` gives for its inputs, those that are not left out; None if it cannot be told."""
    names = list(dict.fromkeys(name for name in node.input if name))
    graph = helper.make_graph(
        [node],
        "number",
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in names],
        [helper.make_tensor_value_info(node.output[0], TensorProto.UNDEFINED, None)],
    )
    try:
        run = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run
    except Exception:  # whatever it lacks; what is not a number is named where it is used
        return lambda values: None

    def evaluate(values: Sequence[Array]) -> Array | None:
        given = dict(zip((name for name in node.input if name), values, strict=True))
        try:
            (result,) = run(None, given)
        except Exception:  # as above
            return None
        return np.asarray(result)

    return evaluate


def shape_of(shape: Array, node: onnx.NodeProto) -> Array:
    """What the `Shape` node answers of a tensor of this shape."""
    given = attributes(node)
    return shape[given.get("start", 0) : given.get("end", len(shape))]
