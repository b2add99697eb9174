"""Graphs of a few layers, and what a batch of images of several sizes should answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from model.contract import ClassInfo, Contract, InputSpec, OutputSpec, TrainingData
from model.ragged import ragged
from model.ragged.file import padded

UInt8Array = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]


def contract(**spec: Any) -> Contract:
    classes = tuple(ClassInfo(i, f"class {i}", (i, i, i)) for i in range(3))
    return Contract(
        "net",
        "net",
        classes,
        TrainingData("none", "CC0-1.0"),
        InputSpec(**spec),
        OutputSpec(logits="y"),
    )


def node(kind: str, inputs: Sequence[str], output: str, **given: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), [output], name=output, **given)


def graph(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], *, float16: bool = False
) -> onnx.ModelProto:
    """uint8 NHWC `image` -> [N,3,H,W] `x`, in 0..1 -> `nodes` -> `y` -> arg max -> `label_map`.

    float16: what `x` is, else float32.
    """
    kind = TensorProto.FLOAT16 if float16 else TensorProto.FLOAT
    head = [
        node("Cast", ["image"], "numbers", to=kind),
        node("Div", ["numbers", "most"], "shares"),
        node("Transpose", ["shares"], "x", perm=[0, 3, 1, 2]),
    ]
    tail = [
        node("ArgMax", ["y"], "index", axis=1, keepdims=0),
        node("Cast", ["index"], "label_map", to=TensorProto.UINT8),
    ]
    constants = {"most": np.array(255, np.float16 if float16 else np.float32), **constants}
    made = helper.make_graph(
        [*head, *nodes, *tail],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [
            helper.make_tensor_value_info("label_map", TensorProto.UINT8, ["N", "h", "w"]),
            helper.make_tensor_value_info("y", kind, ["N", 3, "h", "w"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def session(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def pictures(sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[UInt8Array]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


class Pair:
    """A network as it was and as it takes images of several sizes."""

    def __init__(self, proto: onnx.ModelProto, plain: Contract) -> None:
        self.plain = plain
        self.proto, self.contract = ragged(proto, plain)
        self._alone, self._together = session(proto), session(self.proto)

    @property
    def masked(self) -> list[str]:
        """The maps that are cleared, in order."""
        return [n.input[1] for n in self.proto.graph.node if n.op_type == "Where"]

    def differences(self, sizes: Sequence[tuple[int, int]], seed: int = 0) -> list[float]:
        """Of each image's logits, relative to the largest. Checks the labels: one that differs has
        two logits that are as good as equal."""
        images = pictures(sizes, seed)
        labels, logits = self._together.run(
            ["label_map", str(self.plain.outputs.logits)],
            self.contract.feeds(padded(images), sizes),
        )
        found = []
        for index, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
            wanted = self._alone.run(
                ["label_map", str(self.plain.outputs.logits)], self.plain.feeds(image[None])
            )
            own = logits[index, :, :height, :width].astype(np.float64)
            scale = max(float(np.abs(wanted[1]).max()), 1e-6)
            found.append(float(np.abs(own - wanted[1][0]).max()) / scale)
            np.testing.assert_array_equal(labels[index, :height, :width], wanted[0][0])
        return found
