"""An exported fp32 file, opened to make one of fewer bits of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from model.contract import Contract
from model.exported import NotExported, read_exported
from model.winograd import WinogradError, use_winograd

_ACTIVATIONS = frozenset({"Relu", "Clip", "MaxPool"})


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
    try:
        proto, contract = read_exported(path)
    except NotExported as error:
        raise QuantizeError(str(error)) from error
    kinds = {node.op_type for node in proto.graph.node}
    if contract.precision != "fp32" or kinds & {"DequantizeLinear", "QLinearConv"}:
        raise QuantizeError(
            f"{path} is {contract.precision} and quantised already: give the fp32 file"
        )
    if contract.input.sizes is not None:
        raise QuantizeError(f"{path} takes images of several sizes: export the network again")
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
