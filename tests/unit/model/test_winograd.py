"""Winograd's form of a convolution: the same values, half the multiplications."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from model.winograd import WinogradError, use_winograd

INPUTS, OUTPUTS = 4, 5


def convolution(
    kernel: int, pad: int = 0, bias: bool = True, shape: tuple[int, int] | None = None, **given: Any
) -> onnx.ModelProto:
    random = np.random.default_rng(kernel)
    sides = shape or (kernel, kernel)
    held = {"fc6.weight": random.normal(size=(OUTPUTS, INPUTS, *sides))}
    if bias:
        held["fc6.bias"] = random.normal(size=OUTPUTS)
    node = helper.make_node("Conv", ["x", *held], ["y"], name="fc6", pads=[pad] * 4, **given)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", OUTPUTS, "a", "b"])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(proto: onnx.ModelProto, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("kernel", [3, 7, 11])
@pytest.mark.parametrize("pad", [0, 1, "same"])
@pytest.mark.parametrize("bias", [True, False])
def test_gives_the_same_values(kernel: int, pad: int | str, bias: bool) -> None:
    proto = convolution(kernel, kernel // 2 if pad == "same" else int(pad), bias)
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    names = use_winograd(changed.graph, changed.graph.node[0])
    onnx.checker.check_model(changed, full_check=True)
    convolutions = [node.name for node in changed.graph.node if node.op_type == "Conv"]
    assert sorted(names) == sorted(convolutions)
    assert len(names) == 32, "a sum and a product for each of 16"
    random = np.random.default_rng(0)
    for size in [(12, 16), (11, 13), (13, 12), (12, 11)]:
        x = random.normal(size=(2, INPUTS, *size)).astype(np.float32)
        wanted, got = run(proto, x), run(changed, x)
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize(("kernel", "products"), [(3, 16), (7, 100), (11, 256)])
def test_multiplies_half_as_often(kernel: int, products: int) -> None:
    """For each input, output and 2x2 cells; the plain form takes (2 * kernel) ** 2."""
    proto = convolution(kernel)
    use_winograd(proto.graph, proto.graph.node[0])
    shapes = [
        list(t.dims) for t in proto.graph.initializer if list(t.dims[:2]) == [OUTPUTS, INPUTS]
    ]
    assert sum(height * width for _, _, height, width in shapes) == products
    assert "fc6.weight" not in {tensor.name for tensor in proto.graph.initializer}


@pytest.mark.parametrize(
    "proto",
    [
        convolution(5),
        convolution(3, shape=(3, 7)),
        convolution(3, strides=[2, 2]),
        convolution(3, dilations=[2, 2]),
        convolution(1),
    ],
)
def test_refuses_what_it_cannot_do(proto: onnx.ModelProto) -> None:
    before = proto.SerializeToString()
    with pytest.raises(WinogradError, match=r"square kernels of 3, 7 or 11 taps"):
        use_winograd(proto.graph, proto.graph.node[0])
    assert proto.SerializeToString() == before


def test_refuses_weights_that_are_not_in_the_file() -> None:
    proto = convolution(3)
    del proto.graph.initializer[0]
    with pytest.raises(WinogradError, match="no two-dimensional convolution"):
        use_winograd(proto.graph, proto.graph.node[0])
