"""An exported fp32 file, opened to make one of lower precision of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from model.contract import Contract
from model.export.onnx_file import NotExported, UInt8Array, read_exported, session

_ACTIVATIONS = frozenset({"Relu", "Clip", "MaxPool"})
_LARGE_SCORE = "score_pool2"
"""The plain score of the map at stride 4, which is quantised although it is in the tail: read in
float, that map took as long as a fifth of the network (training/LOG.md)."""

_PART = re.compile(r"\.(sum|product)_\d\d$")
"""Matches the weights of a `WinogradConv2d`."""


class QuantizeError(ValueError):
    """A file cannot be quantised; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Fp32Model:
    """Holds an fp32 file that is ready to be quantised.

    `layers`: name -> node names of its convolutions, in order, without those of the tail (but
    `score_pool2`), which stay in float anyway. A layer has more than one if it is in Winograd's
    form.
    """

    proto: onnx.ModelProto
    contract: Contract
    layers: dict[str, tuple[str, ...]]


def load_fp32(path: Path) -> Fp32Model:
    """Raises: QuantizeError if it is no model, has no contract or is quantised already."""
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
    layers = _layers(proto.graph)
    if not layers:
        raise QuantizeError(f"{path} has no convolution before its scores: nothing to quantise")
    return Fp32Model(proto, contract, layers)


def _layers(graph: onnx.GraphProto) -> dict[str, tuple[str, ...]]:
    tail = tail_of(graph)
    users = {name: node for node in graph.node for name in node.input[:1]}
    layers: dict[str, tuple[str, ...]] = {}
    for node in graph.node:
        if node.op_type != "Conv" or (node.name in tail and _layer(node) != _LARGE_SCORE):
            continue
        # The exporter keeps one of several equal sums: whose it is, the product after it tells.
        named = users[node.output[0]] if ".sum_" in node.input[1] else node
        layers[_layer(named)] = (*layers.get(_layer(named), ()), node.name)
    return layers


def _layer(node: onnx.NodeProto) -> str:
    """Names a layer: `network.backbone.dw1.conv.weight` -> `backbone.dw1`; else by its node."""
    weight = _PART.sub(".weight", node.input[1])
    name = weight.removeprefix("network.").removesuffix(".weight").removesuffix(".conv")
    return name if weight.endswith(".weight") else node.name


def simulate(proto: onnx.ModelProto, threads: int = 0, *, optimized: bool = False) -> Any:
    """Opens a session that computes what an exact integer convolution would, in float.

    Without the runtime's fusions every DequantizeLinear gives the float value of its integers, and
    sums of their products are exact far beyond 8 bits, as they are with VNNI. Fused, a CPU with
    AVX2 alone adds pairs of products in 16 bits, which overflow.

    optimized: with the fusions all the same, for a graph without such nodes.
    """
    return session(proto, threads=threads, optimized=optimized)


def tensor_ranges(
    model: Fp32Model,
    names: Sequence[str],
    images: Iterable[UInt8Array],
    look: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, tuple[np.float32, np.float32]]:
    """Finds the lowest and highest value of each of the inner tensors `names` over the images.

    Ours rather than ONNX Runtime's calibrators, which add reductions to the graph and took three
    times as long (bench/LOG.md). `images`: uint8 RGB [H,W,3], of any sizes. `look` is shown every
    image's values. Raises: QuantizeError if there are no images.
    """
    outputs = {value.name for value in model.proto.graph.output}
    names = [name for name in names if name not in outputs]
    running = session(model.proto, extra=names)
    lowest = np.full(len(names), np.inf, np.float32)
    highest = -lowest
    count = 0
    for image in images:
        values = running.run(names, model.contract.feeds(image[None]))
        lowest = np.minimum(lowest, [value.min() for value in values])
        highest = np.maximum(highest, [value.max() for value in values])
        if look is not None:
            look(dict(zip(names, values, strict=True)))
        count += 1
    if not count:
        raise QuantizeError("no image to calibrate with: name a folder that holds some")
    return {name: (lowest[i], highest[i]) for i, name in enumerate(names)}


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
