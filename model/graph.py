"""Edits of an exported ONNX graph that change nothing of what it computes."""

from __future__ import annotations

from itertools import chain
from typing import Any

import onnx

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
