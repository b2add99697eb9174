"""The field that is read off a graph is the field that the graph has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model.contract import ClassInfo, Contract, InputSpec, TrainingData
from model.export.adopt.receptive_field import Halo, UnboundedField, halo_of

Array = npt.NDArray[np.uint8]
AnyArray = npt.NDArray[Any]


def _ints(values: Sequence[int]) -> AnyArray:
    return np.array(values, np.int64)


def _floats(values: Sequence[float]) -> AnyArray:
    return np.array(values, np.float32)


def _contract(stride: int = 32) -> Contract:
    classes = tuple(ClassInfo(i, f"class {i}", (i, i, i)) for i in range(3))
    return Contract(
        "net", "net", classes, TrainingData("none", "CC0-1.0"), InputSpec(stride=stride)
    )


def _graph(nodes: Sequence[onnx.NodeProto], **constants: AnyArray) -> onnx.ModelProto:
    """uint8 NHWC `image` -> cast and transposed `x` -> `nodes` -> `y` -> arg max -> `label_map`."""
    head = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x"], perm=[0, 3, 1, 2]),
    ]
    tail = [
        helper.make_node("ArgMax", ["y"], ["index"], axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["label_map"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        [*head, *nodes, *tail],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("label_map", TensorProto.UINT8, ["N", "h", "w"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _pool(kind: str, into: str, kernel: int, stride: int, pad: int) -> onnx.NodeProto:
    return helper.make_node(
        kind, ["x"], [into], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4
    )


def test_a_pooling_reaches_as_far_as_its_kernel() -> None:
    assert halo_of(_graph([_pool("MaxPool", "y", 5, 1, 2)]), _contract()) == Halo(2, 1)
    assert halo_of(_graph([_pool("AveragePool", "y", 3, 1, 2)]), _contract()) == Halo(2, 1)


def test_halved_and_doubled() -> None:
    """Output 2i and 2i+1 lie between the cells i-1, i and i+1, of two pixels each."""
    resize = helper.make_node("Resize", ["low", "", "scales"], ["y"], mode="linear")
    graph = _graph([_pool("AveragePool", "low", 2, 2, 0), resize], scales=_floats([1, 1, 2, 2]))
    halo = halo_of(graph, _contract())
    assert halo.stride == 2
    # Pixel 2i sees the cells i-1 and i: from 2i-2 on. Pixel 2i+1 sees i and i+1: up to 2i+3.
    assert 2 <= halo.halo_px <= 4


@pytest.mark.parametrize(
    ("nodes", "constants", "named"),
    [
        ([helper.make_node("GlobalAveragePool", ["x"], ["y"])], {}, "GlobalAveragePool"),
        ([helper.make_node("InstanceNormalization", ["x"], ["y"])], {}, "InstanceNormalization"),
        (
            [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear")],
            {"sizes": _ints([1, 3, 64, 64])},
            "Resize",
        ),
        (
            [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")],
            {"scales": _floats([1, 1, 2, 2])},
            "Resize",
        ),
        (
            [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="linear")],
            {"scales": _floats([1, 1, 0.5, 0.5])},
            "shrinks",
        ),
        (
            [helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["y"])],
            {"starts": _ints([-9]), "ends": _ints([9]), "axes": _ints([2])},
            "Slice",
        ),
        ([helper.make_node("Concat", ["x", "x"], ["y"], axis=3)], {}, "not over the classes"),
        (
            [helper.make_node("Reshape", ["x", "shape"], ["y"])],
            {"shape": _ints([0, 3, -1, 8])},
            "may see every pixel",
        ),
        (
            [helper.make_node("Gather", ["x", "index"], ["y"], axis=2)],
            {"index": _ints([0])},
            "Gather",
        ),
        ([helper.make_node("Softmax", ["x"], ["y"], axis=3)], {}, "not over the classes"),
        (
            [helper.make_node("Squeeze", ["x", "axes"], ["y"])],
            {"axes": _ints([2])},
            "Squeeze .* is not of channels",
        ),
        (
            [helper.make_node("Pad", ["x", "pads"], ["y"], mode="reflect")],
            {"pads": _ints([0, 0, 1, 1, 0, 0, 1, 1])},
            "Pad",
        ),
        (
            [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], auto_pad="SAME_UPPER")],
            {},
            "pads by the image's size",
        ),
        ([_pool("MaxPool", "y", 2, 2, 0)], {}, "the image's size"),
        (
            [_pool("MaxPool", "low", 2, 2, 0), helper.make_node("Add", ["x", "low"], ["y"])],
            {},
            "different strides",
        ),
    ],
)
def test_what_may_see_every_pixel_is_named(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, AnyArray], named: str
) -> None:
    with pytest.raises(UnboundedField, match=named):
        halo_of(_graph(nodes, **constants), _contract())


def test_depth_to_space() -> None:
    """Each of 4x4 pixels depends on the block of 4x4 that a strided convolution saw."""
    deep = helper.make_node("Conv", ["x", "weight"], ["deep"], strides=[4, 4])
    back = helper.make_node("DepthToSpace", ["deep"], ["y"], blocksize=4)
    weight = np.zeros((16, 3, 4, 4), np.float32)
    assert halo_of(_graph([deep, back], weight=weight), _contract()) == Halo(4, 4)


def test_pads_and_crops_move_the_reach() -> None:
    pad = helper.make_node("Pad", ["x", "pads"], ["wide"])
    crop = helper.make_node("Slice", ["wide", "starts", "ends", "axes"], ["y"])
    graph = _graph(
        [pad, crop],
        pads=_ints([0, 0, 4, 4, 0, 0, 0, 0]),
        starts=_ints([4, 4]),
        ends=_ints([10**9] * 2),
        axes=_ints([2, 3]),
    )
    assert halo_of(graph, _contract()) == Halo(0, 1)
