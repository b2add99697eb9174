"""From an exported fp32 file to one whose convolutions work on fp16 numbers, for GPUs.

fp16 has 11 significant bits and ends at 65504. Pixels and their normalisation before, and score
layers, upsampling and arg max behind, stay in fp32; so does what an image was seen to drive near
that end. Input and output are uint8 as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.contract import METADATA_KEY
from model.export.fp32_model import Fp32Model, QuantizeError, tail_of, tensor_ranges
from model.export.onnx_file import UInt8Array, copied

LARGEST = float(np.finfo(np.float16).max)
HEADROOM = 4.0
"""Values on other images than those tried may be so many times as large."""

_WITH_HALVES = frozenset(
    {
        "Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "GlobalAveragePool",
        "LeakyRelu", "MaxPool", "Mul", "Pad", "Relu", "Slice",
    }
)  # fmt: skip
"""Operators that may work on fp16 numbers: all that ONNX Runtime has on CUDA in fp16 and that add
up, in fp32, or choose. Others, such as a softmax, stay in fp32."""

_SPLIT = float(2**13 + 1)
"""x * s - (x * s - x) is x rounded to 11 bits, where s is 2^13 + 1 and x has 24.
Source: Dekker 1971, "A floating-point technique for extending the available precision"."""


class Fp16Converter:
    """Looks at the values once; then makes fp16 files of any choice of layers."""

    def __init__(
        self, model: Fp32Model, images: Iterable[UInt8Array], headroom: float = HEADROOM
    ) -> None:
        """`images`: uint8 RGB [H,W,3], of any sizes. Raises: QuantizeError if there are none."""
        self.model, self.headroom = model, headroom
        self._floats = _float_tensors(model.proto)
        self._candidates = _candidates(model, self._floats)
        names = {name for node in self._candidates for name in (*node.input, *node.output)}
        # Of the score layer of the largest map, which stays in fp32, the report tells them, too.
        layers = (name for nodes in model.layers.values() for name in nodes)
        names |= {_node(model.proto, name).output[0] for name in layers}
        names &= self._floats - {tensor.name for tensor in model.proto.graph.initializer}
        self._largest = {
            name: float(max(highest, -lowest))
            for name, (lowest, highest) in tensor_ranges(model, sorted(names), images).items()
        }

    def largest(self, layer: str) -> float:
        """Gives the largest absolute value that the layer's convolution gave."""
        nodes = (_node(self.model.proto, name) for name in self.model.layers[layer])
        return max(self._largest[node.output[0]] for node in nodes)

    def fp16_layers(self, keep_float: Sequence[str] = ()) -> set[str]:
        """Lists the layers that `convert` gives fp16 arithmetic."""
        half = self._half(keep_float)
        return {layer for layer, names in self.model.layers.items() if half.issuperset(names)}

    def convert(self, keep_float: Sequence[str] = ()) -> onnx.ModelProto:
        """Makes the fp16 file.

        `keep_float`: layers left in fp32 besides those whose values need it.

        Raises: QuantizeError naming a layer that is unknown, or if no layer is left.
        """
        half = self._half(keep_float)
        proto = copied(self.model.proto)
        _convert(proto, half, self._floats)
        contract = replace(self.model.contract, precision="fp16", scores={})
        helper.set_model_props(proto, {METADATA_KEY: contract.to_json()})
        proto.producer_name = "fcn quantize"
        proto.producer_version = ""
        onnx.checker.check_model(proto)
        return proto

    def simulated(self, keep_float: Sequence[str] = ()) -> onnx.ModelProto:
        """Do as `convert`, computed in fp32 with every fp16 number rounded to 11 bits.

        On a CPU without fp16 arithmetic ONNX Runtime computes an fp16 file in fp32 and leaves the
        roundings in between out, so that only the weights' show; a GPU rounds every tensor.
        """
        proto = self.convert(keep_float)
        inferred = onnx.shape_inference.infer_shapes(proto).graph.value_info
        kinds = {value.name: value.type.tensor_type.elem_type for value in inferred}
        _round(proto.graph, {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16})
        return proto

    def _half(self, keep_float: Sequence[str]) -> set[str]:
        """Names of the nodes that work on fp16 numbers."""
        if unknown := sorted(set(keep_float) - set(self.model.layers)):
            known = ", ".join(self.model.layers)
            raise QuantizeError(f"there is no layer {unknown[0]!r}: choose from {known}")
        kept = {name for layer in keep_float for name in self.model.layers[layer]}
        limit = LARGEST / self.headroom
        weights = {
            tensor.name: float(np.abs(numpy_helper.to_array(tensor)).max(initial=0))
            for tensor in self.model.proto.graph.initializer
            if tensor.name in self._floats
        }

        def fits(name: str) -> bool:
            if name in weights:
                return weights[name] <= LARGEST
            return self._largest[name] <= limit

        half = {
            node.name
            for node in self._candidates
            if node.name not in kept
            and all(fits(n) for n in (*node.input, *node.output) if n in self._floats)
        }
        if not any(half.issuperset(names) for names in self.model.layers.values()):
            raise QuantizeError("every layer is left in fp32: the file would gain nothing")
        return half


def _candidates(model: Fp32Model, floats: set[str]) -> list[onnx.NodeProto]:
    """Lists the nodes from the first convolutions to the last activations."""
    graph = model.proto.graph
    behind: set[str] = set()
    """Tensors that some convolution lies before."""
    for node in graph.node:
        if node.op_type == "Conv" or behind.intersection(node.input):
            behind.update(node.output)
    tail = tail_of(graph)
    return [
        node
        for node in graph.node
        if node.op_type in _WITH_HALVES
        and node.name not in tail
        and node.output[0] in floats & behind
    ]


def _float_tensors(proto: onnx.ModelProto) -> set[str]:
    """Names of the fp32 ones: activations and initializers."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    names = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}


def _convert(proto: onnx.ModelProto, half: set[str], floats: set[str]) -> None:
    """Gives the nodes of `half` fp16 weights, and each tensor that crosses over a cast."""
    graph = proto.graph
    del graph.value_info[:]  # it may say of tensors that they are fp32
    _convert_weights(graph, half, floats)
    made_half = {name for node in graph.node if node.name in half for name in node.output}
    held = {tensor.name for tensor in graph.initializer}
    casts: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        is_half = node.name in half
        for index, name in enumerate(node.input):
            if name not in floats or name in held or (name in made_half) == is_half:
                continue
            if name not in casts:
                casts[name] = f"{name}_{'half' if is_half else 'float'}"
                kind = TensorProto.FLOAT16 if is_half else TensorProto.FLOAT
                nodes.append(_cast(name, casts[name], kind))
            node.input[index] = casts[name]
        nodes.append(node)
    _replace(graph, nodes)


def _convert_weights(graph: onnx.GraphProto, half: set[str], floats: set[str]) -> None:
    """Converts weights; one that fp32 nodes use too gets a copy."""
    tensors = {t.name: t for t in graph.initializer if t.name in floats}
    users = {name: [n.name in half for n in graph.node if name in n.input] for name in tensors}
    for name, of_half in users.items():
        if not any(of_half):
            continue
        own = name if all(of_half) else f"{name}_half"
        halved = numpy_helper.from_array(
            numpy_helper.to_array(tensors[name]).astype(np.float16), own
        )
        if own == name:
            tensors[name].CopyFrom(halved)
            continue
        graph.initializer.append(halved)
        for node in graph.node:
            if node.name in half:
                for index in range(len(node.input)):
                    if node.input[index] == name:
                        node.input[index] = own


def _round(graph: onnx.GraphProto, halves: set[str]) -> None:
    """Turns weights and tensors of fp16 into fp32 with 11 significant bits. `halves`: tensors."""
    split = "eleven_bits"
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            rounded = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    graph.initializer.append(numpy_helper.from_array(np.array(_SPLIT, np.float32), split))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "Cast" and halves.intersection((*node.input, *node.output)):
            node.op_type = "Identity"
            del node.attribute[:]
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in halves:
                node.output[index] = f"{name}_exact"
                nodes += _rounding(f"{name}_exact", name, split)
    _replace(graph, nodes)


def _rounding(name: str, rounded: str, split: str) -> Iterator[onnx.NodeProto]:
    yield helper.make_node("Mul", [name, split], [f"{name}_large"], name=f"{name}_large")
    yield helper.make_node("Sub", [f"{name}_large", name], [f"{name}_rest"], name=f"{name}_rest")
    yield helper.make_node(
        "Sub", [f"{name}_large", f"{name}_rest"], [rounded], name=f"{name}_rounding"
    )


def _cast(name: str, target: str, kind: Any) -> onnx.NodeProto:
    return helper.make_node("Cast", [name], [target], to=kind, name=target)


def _node(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if node.name == name)


def _replace(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
