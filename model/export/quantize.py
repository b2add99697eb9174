"""From an exported fp32 file to an int8 one: 8-bit weights per channel, 8-bit activations.

Static quantisation in the QDQ form: convolutions stand between QuantizeLinear and DequantizeLinear
nodes, which a runtime fuses into integer convolutions where the CPU has the instructions. What
follows the last activation (score layers, upsampling, arg max) stays in float.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import onnx
from onnx import helper, numpy_helper

from model.contract import METADATA_KEY, Contract
from model.export.fp32_model import Fp32Model, QuantizeError, tensor_ranges
from model.export.onnx_file import UInt8Array, copied

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
"""How a tensor's range is chosen from what it held on the calibration images."""

PERCENTILE = 99.99
"""Share of a tensor's values within the range that the method `percentile` gives it."""

_WITH_INTEGERS = ("Conv", "Clip", "Relu", "MaxPool")
"""Operators that take and give 8-bit tensors; the last three so that none stands in between."""


class Quantizer:
    """Calibrates once; then makes int8 files of any choice of layers."""

    def __init__(
        self, model: Fp32Model, images: Iterable[UInt8Array], method: Method = "minmax"
    ) -> None:
        """`images`: uint8 RGB [H,W,3], of any sizes. Raises: QuantizeError if there are none."""
        self.model = model
        self.ranges = _calibrate(model, images, method)

    def quantize(self, layers: Sequence[str], *, reduce_range: bool = False) -> onnx.ModelProto:
        """Makes the int8 file. `layers`: those to quantise; the others stay in float.

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


def take_pixels(proto: onnx.ModelProto, contract: Contract) -> None:
    """Makes the pixels the first quantised tensor, where normalisation is (x - c) / d.

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


def _calibrate(model: Fp32Model, images: Iterable[UInt8Array], method: Method) -> Any:
    """Finds the range of every tensor that may become 8-bit, for ONNX Runtime's quantiser."""
    from onnxruntime.quantization.calibrate import (
        CalibrationMethod,
        HistogramCollector,
        TensorsData,
    )

    graph = model.proto.graph
    touched = (node for node in graph.node if node.op_type in _WITH_INTEGERS)
    names = {name for node in touched for name in (node.input[0], *node.output)}
    names -= {tensor.name for tensor in graph.initializer}
    if method == "minmax":
        return TensorsData(CalibrationMethod.MinMax, tensor_ranges(model, sorted(names), images))
    kind = {"percentile": CalibrationMethod.Percentile, "entropy": CalibrationMethod.Entropy}
    histograms = HistogramCollector(method, False, 2048, 128, PERCENTILE, "same")
    tensor_ranges(
        model,
        sorted(names),
        images,
        lambda values: histograms.collect({name: [value] for name, value in values.items()}),
    )
    return TensorsData(kind[method], histograms.compute_collection_result())
