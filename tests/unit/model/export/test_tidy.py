"""Edits of a graph that must not change what it computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from model.export.tidy import merge_slices


def two_slices(axes: tuple[int, int], *, step: int = 1, shared: bool = False) -> onnx.ModelProto:
    """x[2:7] on one axis, then [1:4] on another. shared: the result between is used twice."""
    starts = {"s1": [2], "e1": [7], "a1": [axes[0]], "s2": [1], "e2": [4], "a2": [axes[1]]}
    starts["step"] = [step]
    inputs = [["x", "s1", "e1", "a1", "step"], ["between", "s2", "e2", "a2", "step"]]
    nodes = [
        helper.make_node("Slice", inputs[0], ["between"]),
        helper.make_node("Slice", inputs[1], ["cut"]),
        helper.make_node("Identity", ["between" if shared else "cut"], ["y"]),
    ]
    outputs = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["h", "w"]) for n in ("cut", "y")
    ]
    graph = helper.make_graph(
        nodes,
        "slices",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["H", "W"])],
        outputs,
        [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in starts.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto) -> Sequence[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.arange(110, dtype=np.float32).reshape(10, 11)
    return [np.asarray(result) for result in session.run(None, {"x": x})]


def slices(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Slice" for node in model.graph.node)


def test_two_axes_become_one_slice() -> None:
    model = two_slices((0, 1))
    before = run(model)
    model = merge_slices(model)
    assert slices(model) == 1
    for old, new in zip(before, run(model), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "model",
    [
        two_slices((0, 0)),
        two_slices((0, -1)),
        two_slices((0, 1), step=2),
        two_slices((0, 1), shared=True),
    ],
    ids=["same axis", "negative axis", "steps", "used twice"],
)
def test_others_stay(model: onnx.ModelProto) -> None:
    before = run(model)
    model = merge_slices(model)
    assert slices(model) == 2
    for old, new in zip(before, run(model), strict=True):
        np.testing.assert_array_equal(old, new)
