"""Edits of an exported ONNX graph that change nothing of what it computes."""

from __future__ import annotations

from itertools import chain
from typing import Any

import onnx
from onnx import helper, numpy_helper

from model.contract import Contract


def tidy(proto: onnx.ModelProto, contract: Contract) -> None:
    """Name the dynamic axes and drop what only describes the exporting machine.

    torch's exporter records stack traces (with file paths) at every node and writes the output's
    size as a formula of the input's; output and input sizes are equal, and say so here.
    """
    graph = proto.graph
    for part in chain[Any]([graph], graph.node, graph.input, graph.output, graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    del proto.graph.value_info[:]
    proto.doc_string = ""
    proto.graph.name = contract.architecture
    proto.producer_name = "fcn export"
    proto.producer_version = ""
    axes = {
        contract.input.name: {0: "batch", 1: "height", 2: "width"},
        contract.outputs.label_map: {0: "batch", 1: "height", 2: "width"},
    }
    if contract.outputs.logits:
        axes[contract.outputs.logits] = {0: "batch", 2: "height", 3: "width"}
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        for axis, name in axes[value.name].items():
            dims[axis].Clear()
            dims[axis].dim_param = name


def merge_slices(proto: onnx.ModelProto) -> None:
    """One `Slice` where two follow each other on different axes.

    torch's exporter writes a crop of rows and columns as two, and each copies its whole result.
    """
    graph = proto.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    results = {value.name for value in graph.output}
    index = 0
    while index < len(graph.node):
        second = graph.node[index]
        first = _producer(graph, second.input[0]) if second.op_type == "Slice" else None
        if (
            first is None
            or first.output[0] in results
            or _uses(graph, first.output[0]) != 1
            or not _are_on_different_axes(first, second, constants)
        ):
            index += 1
            continue
        stem = second.output[0]
        joined = []
        for place, part in enumerate(("starts", "ends", "axes"), start=1):
            name = f"{stem}_{part}"
            pair = [first.input[place], second.input[place]]
            joined.append(helper.make_node("Concat", pair, [name], axis=0))
        merged = helper.make_node(
            "Slice", [first.input[0], *(node.output[0] for node in joined)], [stem], name=stem
        )
        del graph.node[index]
        for node in (merged, *reversed(joined)):
            graph.node.insert(index, node)
        graph.node.remove(first)


def _are_on_different_axes(
    first: onnx.NodeProto, second: onnx.NodeProto, constants: dict[str, Any]
) -> bool:
    """Tell it of two slices with axes in the file, and steps of 1."""
    for node in (first, second):
        if len(node.input) < 4 or node.input[3] not in constants:
            return False
        steps = node.input[4] if len(node.input) > 4 else ""
        if steps and (steps not in constants or (constants[steps] != 1).any()):
            return False
    axes = [int(axis) for node in (first, second) for axis in constants[node.input[3]]]
    # A negative axis may be any other: leave such slices as they are.
    return min(axes) >= 0 and len(set(axes)) == len(axes)


def _producer(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    """The `Slice` that gives `name`."""
    return next((n for n in graph.node if n.op_type == "Slice" and name in n.output), None)


def _uses(graph: onnx.GraphProto, name: str) -> int:
    return sum(list(node.input).count(name) for node in graph.node)
