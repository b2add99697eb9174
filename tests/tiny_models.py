"""Tiny ONNX networks with a contract, whose right answers numpy can compute.

`write_model` writes a network whose label is the channel that is brightest at each pixel: logits
are the pixel's R, G, B plus a bias that settles ties (R before G before B) and can favour a class.
No torch: only the `onnx` package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.contract import (
    METADATA_KEY,
    ClassInfo,
    Contract,
    InputSpec,
    OutputSpec,
    TrainingData,
)

UInt8Array = npt.NDArray[np.uint8]

CLASSES = (
    ClassInfo(0, "red", (200, 30, 20)),
    ClassInfo(1, "green", (10, 180, 40)),
    ClassInfo(2, "blue", (5, 60, 220)),
)
NO_BIAS = (0.0, 0.0, 0.0)


def contract(
    name: str = "tiny", *, logits: bool = False, input_spec: InputSpec | None = None
) -> Contract:
    return Contract(
        model_name=name,
        architecture="brightest-channel",
        classes=CLASSES,
        training_data=TrainingData("none", "CC0-1.0"),
        input=input_spec or InputSpec(stride=1),
        format_version=1 if input_spec is None else input_spec.format_version,
        outputs=OutputSpec(logits="logits" if logits else None),
    )


def expected_logits(rgb: UInt8Array, bias: Sequence[float] = NO_BIAS) -> npt.NDArray[np.float32]:
    """uint8 RGB [N,H,W,3] -> float32 [N,3,H,W]."""
    values = rgb.astype(np.float32) + np.asarray(bias, np.float32)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def expected_label_map(rgb: UInt8Array, bias: Sequence[float] = NO_BIAS) -> UInt8Array:
    """uint8 RGB [H,W,3] or [N,H,W,3] -> uint8 [H,W] or [N,H,W]; the first of equals wins."""
    values = rgb.astype(np.float32) + np.asarray(bias, np.float32)
    return np.asarray(values.argmax(axis=-1), np.uint8)


def build(
    *,
    logits: bool = False,
    bias: Sequence[float] = NO_BIAS,
    metadata: Mapping[str, str] | None = None,
    input_name: str = "image",
    input_type: int = TensorProto.UINT8,
    channels: int = 3,
    label_type: int = TensorProto.UINT8,
    shrink: bool = False,
) -> onnx.ModelProto:
    """The graph. Everything but `logits`, `bias` and `metadata` is a way to break the contract.

    metadata: metadata_props as they are. shrink: drops the last row, as a network without its
    upsampling would.
    """
    nodes = [
        helper.make_node("Cast", [input_name], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["float", "bias"], ["biased"]),
        helper.make_node("Transpose", ["biased"], ["logits"], perm=[0, 3, 1, 2]),
        helper.make_node("ArgMax", ["logits"], ["index"], axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["labels"], to=label_type),
    ]
    initializers = [numpy_helper.from_array(np.asarray(bias, np.float32), "bias")]
    if shrink:
        for name, value in (("starts", 0), ("ends", -1), ("axes", 1)):
            initializers.append(numpy_helper.from_array(np.array([value], np.int64), name))
        nodes.append(helper.make_node("Slice", ["labels", "starts", "ends", "axes"], ["label_map"]))
    else:
        nodes.append(helper.make_node("Identity", ["labels"], ["label_map"]))
    outputs = [helper.make_tensor_value_info("label_map", label_type, ["N", "H_out", "W_out"])]
    if logits:
        outputs.append(
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3, "H", "W"])
        )
    graph = helper.make_graph(
        nodes,
        "brightest-channel",
        [helper.make_tensor_value_info(input_name, input_type, ["N", "H", "W", channels])],
        outputs,
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if metadata:
        helper.set_model_props(model, dict(metadata))
    return model


def write_model(
    repository: Path,
    name: str = "tiny",
    version: int = 1,
    *,
    logits: bool = False,
    bias: Sequence[float] = NO_BIAS,
    model_contract: Contract | None = None,
) -> Path:
    """A model that serves, at `<repository>/<name>/<version>/model.onnx`; returns that path."""
    model_contract = model_contract or contract(name, logits=logits)
    model = build(logits=logits, bias=bias, metadata={METADATA_KEY: model_contract.to_json()})
    return write_file(model, repository, name, version)


def write_file(
    model: onnx.ModelProto, repository: Path, name: str = "tiny", version: int = 1
) -> Path:
    path = repository / name / str(version) / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def write_blur(
    repository: Path,
    name: str = "blur",
    version: int = 1,
    *,
    logits: bool = False,
    input_spec: InputSpec | None = None,
) -> Path:
    """Writes a model with windows: logits are the mean over 5x5 pixels, of which those beyond
    the image count as zero, of colours lessened by unequal numbers. So what an image's edge is
    labelled depends on what lies beyond it."""
    model_contract = contract(name, logits=logits, input_spec=input_spec)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "less"], ["lower"]),
        helper.make_node("Transpose", ["lower"], ["colours"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "AveragePool",
            ["colours"],
            ["near"],
            name="near",
            kernel_shape=[5, 5],
            pads=[2] * 4,
            count_include_pad=1,
        ),
        helper.make_node("Add", ["near", "more"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["index"], axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["label_map"], to=TensorProto.UINT8),
    ]
    less = np.array([90, 120, 150], np.float32)
    outputs = [helper.make_tensor_value_info("label_map", TensorProto.UINT8, ["N", "H", "W"])]
    if logits:
        outputs.append(
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3, "H", "W"])
        )
    graph = helper.make_graph(
        nodes,
        "blur",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        outputs,
        [
            numpy_helper.from_array(less, "less"),
            numpy_helper.from_array(less.reshape(3, 1, 1), "more"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: model_contract.to_json()})
    return write_file(model, repository, name, version)
