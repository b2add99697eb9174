"""Padding by 100 pixels, most of which is computed once: bit for bit the same answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from model.backbones.vgg16 import VGG16
from model.export.border import trim_border
from model.export.export import _to_onnx, fold_norms, with_halo
from model.fcn import FCN
from model.upsample import BilinearUpsample
from tests.unit.model.export.test_export import make_contract

Layer = tuple[str, int, int, int]
"""Kind, kernel, stride, padding."""
POOL2, POOL3 = ("MaxPool", 2, 2, 0), ("MaxPool", 3, 2, 0)
SAME3 = ("Conv", 3, 1, 1)
VGG = [("Conv", 3, 1, 100), SAME3, POOL2, SAME3, SAME3, POOL2, SAME3, SAME3, SAME3, POOL2, SAME3]
ALEXNET = [("Conv", 11, 4, 100), POOL3, ("Conv", 5, 1, 2)]
GOOGLENET = [("Conv", 7, 2, 100), POOL3, ("Conv", 1, 1, 0), SAME3, POOL3, SAME3]
SIZES = [(side, 3 * side % 41 + 1) for side in range(1, 41)] + [(97, 61), (64, 128), (1, 130)]
"""Every remainder of both sides by 32, and sides of one pixel."""


def chain(layers: Sequence[Layer], dilated: int | None = None) -> onnx.ModelProto:
    """With ReLU and a bias far from zero, so that what is around the picture is no zero either."""
    random = np.random.default_rng(0)
    nodes, held, x, channels = [], [], "image", 3
    for index, (kind, kernel, stride, pad) in enumerate(layers):
        step = 2 if index == dilated else 1
        given: dict[str, Any] = {
            "kernel_shape": [kernel] * 2,
            "strides": [stride] * 2,
            "pads": [pad] * 4,
        }
        inputs, y = [x], f"x{index}"
        if kind == "Conv":
            weight = random.normal(size=(8, channels, kernel, kernel)) / kernel / channels
            for name, value in (("w", weight), ("b", random.normal(size=8))):
                held.append(numpy_helper.from_array(value.astype(np.float32), f"{name}{index}"))
                inputs.append(f"{name}{index}")
            nodes.append(
                helper.make_node(kind, inputs, [f"c{index}"], dilations=[step] * 2, **given)
            )
            nodes.append(helper.make_node("Relu", [f"c{index}"], [y]))
            channels = 8
        else:
            nodes.append(helper.make_node(kind, inputs, [y], ceil_mode=1, **given))
        x = y
    nodes.append(helper.make_node("Identity", [x], ["features"]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 8, "a", "b"])],
        held,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def first_padding(proto: onnx.ModelProto) -> int:
    node = next(node for node in proto.graph.node if node.op_type == "Conv")
    return next(int(item.ints[0]) for item in node.attribute if item.name == "pads")


def run(
    of: onnxruntime.InferenceSession, image: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    return np.asarray(of.run(None, {"image": image})[0])


@pytest.mark.parametrize(
    ("layers", "padding_px"),
    [(VGG, 8), (ALEXNET, 36), (GOOGLENET, 16)],
    ids=["vgg", "alex", "goog"],
)
def test_features_are_equal_bit_for_bit(layers: list[Layer], padding_px: int) -> None:
    proto = chain(layers)
    whole = session(proto)
    assert trim_border(proto.graph) == 100 - padding_px
    assert first_padding(proto) == padding_px
    onnx.checker.check_model(proto, full_check=True)
    trimmed = session(proto)
    random = np.random.default_rng(0)
    for size in SIZES:
        image = random.normal(size=(1, 3, *size)).astype(np.float32)
        wanted, got = run(whole, image), run(trimmed, image)
        assert wanted.shape == got.shape
        assert np.array_equal(wanted, got), size


def test_less_padding_would_not_do() -> None:
    """The smallest padding is needed: with one cell less the features differ."""
    proto = chain(VGG)
    whole = session(proto)
    trim_border(proto.graph)
    for node in proto.graph.node:
        if node.op_type == "Conv" and node.input[0] == "image":
            for item in node.attribute:
                if item.name == "pads":
                    item.ints[:] = [pad - 4 for pad in item.ints]
        if node.op_type == "Concat" and node.name.startswith("x2."):
            names = list(node.input)
            del node.input[:]
            node.input.extend(
                [names[0], *names[1:2] * 2, *names[1:-1], *names[-2:-1] * 2, names[-1]]
            )
    image = np.random.default_rng(0).normal(size=(1, 3, 40, 50)).astype(np.float32)
    wanted, got = run(whole, image), run(session(proto), image)
    assert wanted.shape == got.shape
    assert not np.array_equal(wanted, got)


@pytest.mark.parametrize("layers", [[SAME3, SAME3, POOL2, SAME3], [("Conv", 3, 1, 100), SAME3]])
def test_nothing_to_leave_out(layers: list[Layer]) -> None:
    """No wide padding, or no pooling after it."""
    proto = chain(layers)
    before = proto.SerializeToString()
    assert trim_border(proto.graph) == 0
    assert proto.SerializeToString() == before


def test_a_dilated_layer_ends_the_chain() -> None:
    assert trim_border(chain(VGG, dilated=1).graph) == 0
    proto = chain(VGG, dilated=4)
    assert trim_border(proto.graph) > 0, "after the first pooling it is too late to matter"


def test_an_exported_network_gives_the_same_logits() -> None:
    """With skips from pool3 and pool4, and the context of the untrimmed graph."""
    torch.manual_seed(0)
    network = FCN(VGG16("pad100", 8, channels=(4, 4, 6, 8, 8)), 5, "8s")
    for name, layer in network.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            if name.startswith("score"):
                torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias, std=0.5)  # type: ignore[arg-type]
    folded = fold_norms(network)
    for module in folded.modules():
        if isinstance(module, BilinearUpsample):
            module.lowering = "phases"
    proto = _to_onnx(folded, make_contract())
    assert with_halo(proto, make_contract()).input.context_px is not None
    whole = session(proto)
    assert trim_border(proto.graph) == 92
    trimmed = session(proto)
    random = np.random.default_rng(0)
    for size in [(61, 97), (1, 1), (40, 33)]:
        image = random.integers(0, 256, (1, *size, 3), np.uint8)
        wanted, got = (of.run(None, {"image": image}) for of in (whole, trimmed))
        assert all(np.array_equal(a, b) for a, b in zip(wanted, got, strict=True)), size
