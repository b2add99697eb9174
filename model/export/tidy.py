"""Edits of an exported ONNX graph that change nothing of what it computes."""

from __future__ import annotations

from itertools import chain
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir.convenience import get_const_tensor
from onnxscript.rewriter import RewriteRule, rewrite

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


def merge_slices(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Make one `Slice` of two that follow each other on different axes, with steps of 1.

    torch's exporter writes a crop of rows and columns as two, and each copies its whole result.
    """
    return rewrite(proto, [RewriteRule(_two_slices, _one_slice, _are_on_different_axes)])


def _two_slices(op: Any, x: Any, s1: Any, e1: Any, a1: Any, s2: Any, e2: Any, a2: Any) -> Any:
    return op.Slice(op.Slice(x, s1, e1, a1, [1]), s2, e2, a2, [1])


def _one_slice(op: Any, x: Any, s1: Any, e1: Any, a1: Any, s2: Any, e2: Any, a2: Any) -> Any:
    starts, ends, axes = (op.Concat(*pair, axis=0) for pair in ((s1, s2), (e1, e2), (a1, a2)))
    return op.Slice(x, starts, ends, axes)


def _are_on_different_axes(_context: Any, a1: ir.Value, a2: ir.Value, **_: Any) -> bool:
    axes = [get_const_tensor(axis) for axis in (a1, a2)]
    places = [int(place) for axis in axes if axis is not None for place in axis.numpy()]
    # A negative axis may be any other: leave such slices as they are.
    return None not in axes and min(places) >= 0 and len(set(places)) == len(places)
