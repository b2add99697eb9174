"""From an exported fp32 file to an int8 one: 8-bit weights per channel, 8-bit activations.

Static quantisation in the QDQ form: convolutions stand between QuantizeLinear and DequantizeLinear
nodes, which a runtime fuses into integer convolutions where the CPU has the instructions. What
follows the last activation (score layers, upsampling, arg max) stays in float.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from model.contract import METADATA_KEY, Contract, ContractError
from model.winograd import WinogradError, use_winograd

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
"""How a tensor's range is chosen from what it held on the calibration images."""

PERCENTILE = 99.99
"""Of a tensor's values that lie within the range that the method `percentile` gives it."""

UInt8Array = npt.NDArray[np.uint8]

_ACTIVATIONS = frozenset({"Relu", "Clip", "MaxPool"})
_WITH_INTEGERS = ("Conv", "Clip", "Relu", "MaxPool")
"""Operators that take and give 8-bit tensors; the last three so that none stands in between."""


class QuantizeError(ValueError):
    """A file cannot be quantised; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class FloatModel:
    """An fp32 file, ready to be quantised. `layers`: name -> node names of its convolutions, in
    order, without those of the tail, which stay in float anyway. A layer has more than one if it is
    in Winograd's form."""

    proto: onnx.ModelProto
    contract: Contract
    layers: dict[str, tuple[str, ...]]


def open_float_model(path: Path, winograd: Sequence[str] = ()) -> FloatModel:
    """`winograd`: layers to compute with fewer multiplications, see `model.winograd`.

    Raises: QuantizeError if it is no model, has no contract or is quantised already, or if a layer
    of `winograd` is unknown or cannot be computed so.
    """
    if not path.is_file():
        raise QuantizeError(f"there is no file {path}")
    try:
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf's and the checker's share no base class
        raise QuantizeError(f"{path} cannot be read as an ONNX model: {error}") from error
    try:
        contract = Contract.from_metadata({p.key: p.value for p in proto.metadata_props}, str(path))
    except ContractError as error:
        raise QuantizeError(str(error)) from error
    kinds = {node.op_type for node in proto.graph.node}
    if contract.precision != "fp32" or kinds & {"DequantizeLinear", "QLinearConv"}:
        raise QuantizeError(
            f"{path} is {contract.precision} and quantised already: give the fp32 file"
        )
    if contract.input.sizes is not None:
        raise QuantizeError(f"{path} is ragged, which is for GPUs: give the file it was made of")
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    tail = tail_of(proto.graph)
    convolutions = {
        _layer(node): node
        for node in proto.graph.node
        if node.op_type == "Conv" and node.name not in tail
    }
    if not convolutions:
        raise QuantizeError(f"{path} has no convolution before its scores: nothing to quantise")
    if unknown := sorted(set(winograd) - set(convolutions)):
        raise QuantizeError(
            f"there is no layer {unknown[0]!r}: choose from {', '.join(convolutions)}"
        )
    layers: dict[str, tuple[str, ...]] = {
        layer: (node.name,) for layer, node in convolutions.items()
    }
    for layer in winograd:
        try:
            layers[layer] = tuple(use_winograd(proto.graph, convolutions[layer]))
        except WinogradError as error:
            raise QuantizeError(f"layer {layer}: {error}") from error
    return FloatModel(proto, contract, layers)


class Quantizer:
    """Calibrates once; then makes int8 files of any choice of layers."""

    def __init__(
        self, model: FloatModel, images: Iterable[UInt8Array], method: Method = "minmax"
    ) -> None:
        """`images`: uint8 RGB [H,W,3], of any sizes. Raises: QuantizeError if there are none."""
        self.model = model
        self.ranges = _calibrate(model, images, method)

    def quantize(self, layers: Sequence[str], *, reduce_range: bool = False) -> onnx.ModelProto:
        """`layers`: those to quantise; the others stay in float.

        `reduce_range`: 7-bit weights, for CPUs with AVX2 alone, whose 8-bit products overflow
        16 bits. Raises: QuantizeError naming a layer that is unknown.
        """
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        if unknown := sorted(set(layers) - set(self.model.layers)):
            known = ", ".join(self.model.layers)
            raise QuantizeError(f"there is no layer {unknown[0]!r}: choose from {known}")
        chosen = {name for layer in layers for name in self.model.layers[layer]}
        if not chosen:
            raise QuantizeError("every layer is left in float: nothing to quantise")
        proto = copied(self.model.proto)
        inert = [n.name for n in proto.graph.node if n.op_type == "Conv" and n.name not in chosen]
        quantizer = QDQQuantizer(
            proto,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=inert,
            op_types_to_quantize=list(_WITH_INTEGERS),
            extra_options={},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        quantized: onnx.ModelProto = quantizer.model.model
        take_pixels(quantized, self.model.contract)
        contract = replace(self.model.contract, precision="int8", scores={})
        onnx.helper.set_model_props(quantized, {METADATA_KEY: contract.to_json()})
        quantized.producer_name = "fcn quantize"
        quantized.producer_version = ""
        onnx.checker.check_model(quantized)
        return quantized


def simulate(proto: onnx.ModelProto, threads: int = 0, *, optimized: bool = False) -> Any:
    """A session that computes what an exact integer convolution would, in float.

    Without the runtime's fusions every DequantizeLinear gives the float value of its integers, and
    sums of their products are exact far beyond 8 bits, as they are with VNNI. Fused, a CPU with
    AVX2 alone adds pairs of products in 16 bits, which overflow.

    optimized: with the fusions all the same, for a graph without such nodes.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def take_pixels(proto: onnx.ModelProto, contract: Contract) -> None:
    """Pixels themselves as the first quantised tensor, where normalisation is (x - c) / d.

    Cast, Sub and Div by one number each, then QuantizeLinear, are four passes over the image that
    end where they began if the scale is 1/d and the zero point c: they are left out.
    """
    graph = proto.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    chain: list[onnx.NodeProto] = []
    name = contract.input.name
    for kind in ("Transpose", "Cast", "Sub", "Div", "QuantizeLinear", "DequantizeLinear"):
        following = [n for n in users.get(name, ()) if n.op_type != "Shape"]
        if len(following) != 1 or following[0].op_type != kind:
            return
        chain.append(following[0])
        name = following[0].output[0]
    transpose, _cast, sub, div, _quantize, dequantize = chain
    centre, width = constants.get(sub.input[1]), constants.get(div.input[1])
    if centre is None or width is None or centre.size != 1 or width.size != 1:
        return
    point = float(centre.reshape(()))
    if point != int(point) or not 0 <= point <= 255:
        return
    for tensor in (
        numpy_helper.from_array(np.array(1 / width.reshape(()), np.float32), "pixel_scale"),
        numpy_helper.from_array(np.array(int(point), np.uint8), "pixel_zero_point"),
    ):
        graph.initializer.append(tensor)
    direct = helper.make_node(
        "DequantizeLinear",
        [transpose.output[0], "pixel_scale", "pixel_zero_point"],
        list(dequantize.output),
        name="pixels",
    )
    place = list(graph.node).index(dequantize)
    graph.node.insert(place, direct)
    for node in chain[1:]:
        graph.node.remove(node)


def _calibrate(model: FloatModel, images: Iterable[UInt8Array], method: Method) -> Any:
    """The range of every tensor that may become 8-bit, as ONNX Runtime's quantiser wants it.

    Ours rather than its calibrators, which add reductions to the graph and took three times as
    long (bench/LOG.md).
    """
    import onnxruntime
    from onnxruntime.quantization.calibrate import (
        CalibrationMethod,
        HistogramCollector,
        TensorsData,
    )

    proto = copied(model.proto)
    held = {tensor.name for tensor in proto.graph.initializer}
    names = sorted(
        {
            name
            for node in proto.graph.node
            if node.op_type in _WITH_INTEGERS
            for name in (node.input[0], *node.output)
        }
        - held
    )
    outputs = {value.name for value in proto.graph.output}
    proto.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [name for name in names if name not in outputs]
    lowest = np.full(len(names), np.inf)
    highest = -lowest
    histograms = HistogramCollector(method, False, 2048, 128, PERCENTILE, "same")
    count = 0
    for image in images:
        values = session.run(names, model.contract.feeds(image[None]))
        lowest = np.minimum(lowest, [v.min() for v in values])
        highest = np.maximum(highest, [v.max() for v in values])
        if method != "minmax":
            histograms.collect({n: [v] for n, v in zip(names, values, strict=True)})
        count += 1
    if not count:
        raise QuantizeError("no image to calibrate with: name a folder that holds some")
    if method != "minmax":
        kind = {"percentile": CalibrationMethod.Percentile, "entropy": CalibrationMethod.Entropy}
        return TensorsData(kind[method], histograms.compute_collection_result())
    ranges = {
        name: (np.float32(low), np.float32(high))
        for name, low, high in zip(names, lowest, highest, strict=True)
    }
    return TensorsData(CalibrationMethod.MinMax, ranges)


def tail_of(graph: onnx.GraphProto) -> set[str]:
    """Names of the nodes between the last activations and the outputs."""
    producers = {name: node for node in graph.node for name in node.output}
    waiting = [value.name for value in graph.output]
    seen: set[str] = set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.op_type in _ACTIVATIONS or node.name in seen:
            continue
        seen.add(node.name)
        waiting += node.input
    return seen


def _layer(node: onnx.NodeProto) -> str:
    """`network.backbone.dw1.conv.weight` -> `backbone.dw1`; else the node's name."""
    name = node.input[1].removeprefix("network.").removesuffix(".weight").removesuffix(".conv")
    return name if node.input[1].endswith(".weight") else node.name


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    fresh = onnx.ModelProto()
    fresh.CopyFrom(proto)
    return fresh
