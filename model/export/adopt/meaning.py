"""Telling what the numbers of an output are: by the caller's word, or by graph and trial runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from model.export.adopt.options import AdoptError

MEANINGS: Final = ("logits", "probabilities", "labels")

_SLACK: Final = 0.01
"""Half precision and quantised networks miss 0, 1, and a sum of 1 by less."""

# A value goes through these as it is, or as a mean of its neighbours.
_MOVES: Final = frozenset((
    "AveragePool", "Cast", "CastLike", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather",
    "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Tile", "Transpose", "Unsqueeze", "Upsample",
))  # fmt: skip
_LINEAR: Final = frozenset((
    "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "Gemm", "InstanceNormalization",
    "MatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul",
))  # fmt: skip
_LABELS: Final = frozenset((
    "And", "ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Not", "Or", "Round", "Xor",
))  # fmt: skip
_AFFINE: Final = frozenset((
    "Add", "DequantizeLinear", "Div", "Mul", "QuantizeLinear", "Sub", "Sum",
))  # fmt: skip
_DEEPEST: Final = 200


@dataclass(frozen=True, slots=True)
class Evidence:
    """Holds what the graph tells: `meaning`, "" if nothing.

    A meaning is "probabilities", "log probabilities", "logits" or "labels"; `node` is the kind of
    node that gave it.
    """

    meaning: str = ""
    node: str = ""


_NOTHING: Final = Evidence()


def evidence_of(graph: onnx.GraphProto, output: str) -> Evidence:
    """Walk back from `output` to the node that made its values. Constants are initializers."""
    return _Walk(graph).back(output)


class _Walk:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._constants = {tensor.name for tensor in graph.initializer}
        self._known: dict[str, Evidence] = {}

    def back(self, name: str, depth: int = 0) -> Evidence:
        if name not in self._known:
            node = self._makers.get(name)
            known = node is not None and node.domain in ("", "ai.onnx") and depth < _DEEPEST
            self._known[name] = self._judged(node, depth + 1) if known and node else _NOTHING
        return self._known[name]

    def _judged(self, node: onnx.NodeProto, depth: int) -> Evidence:
        kind = str(node.op_type)
        if kind in ("Sigmoid", "HardSigmoid", "Softmax"):
            return Evidence("probabilities", kind)
        if kind == "LogSoftmax":
            return Evidence("log probabilities", kind)
        if kind in _LABELS:
            return Evidence("labels", kind)
        parts = [self.back(x, depth) for x in node.input if x and x not in self._constants]
        first = parts[0] if parts else _NOTHING
        if kind in _MOVES:
            return self.back(node.input[0], depth)
        if kind in _LINEAR:
            # A linear layer straight after probabilities may be a blur of them, or a last layer.
            return Evidence("logits", kind) if first.meaning in ("", "logits") else _NOTHING
        if kind == "Clip":
            return first if "probabilities" in first.meaning else _NOTHING
        if kind == "Concat":
            return first if all(part == first for part in parts) else _NOTHING
        if kind == "Log" and first.meaning == "probabilities":
            return Evidence("log probabilities", first.node)
        before = self._makers.get(node.input[0]) if kind == "DequantizeLinear" else None
        if before is not None and before.op_type == "QuantizeLinear":
            return self.back(before.input[0], depth)
        if kind in _AFFINE and node.input[0] not in self._constants:
            # Logits stay logits; probabilities may not lie in 0..1 any more.
            known = {part.meaning for part in parts if part.meaning}
            return next(p for p in parts if p.meaning) if known == {"logits"} else _NOTHING
        return _NOTHING


def meaning_of(
    name: str,
    stated: str | None,
    evidence: Evidence,
    results: Sequence[npt.NDArray[Any]],
    axis: int | None,
) -> str:
    """Say what scores are, "" where neither word nor proof does.

    `axis`: of the classes; None of one score, that of class 1. The arg max of several is the label
    in any case; it is a softmax that must know. Raises: AdoptError if what is stated is not so.
    """
    inside = all(_within(values) for values in results)
    shown = axis is None or all(_sum_to_one(values, axis) for values in results)
    by_values = axis is not None and shown and inside
    by_graph = evidence.meaning == "probabilities"
    if stated == "probabilities":
        if not by_graph and not inside:
            raise AdoptError(
                f"{name} is not probabilities: its values leave 0..1; say --output-is logits, or "
                "leave it out"
            )
        return stated if shown else ""
    if stated == "logits":
        if by_values or by_graph:
            by = f", by the graph's {evidence.node}" if evidence.node else ""
            raise AdoptError(f"{name} is probabilities{by}: leave --output-is logits out")
        return stated
    if shown and by_graph or by_values and evidence.meaning != "logits":
        return "probabilities"
    if axis is None:
        return "logits" if evidence.meaning == "logits" and not inside else ""
    return "logits" if evidence.meaning in ("logits", "log probabilities") and not by_values else ""


def _within(values: npt.NDArray[Any]) -> bool:
    return bool(values.min() >= -_SLACK and values.max() <= 1 + _SLACK)


def _sum_to_one(values: npt.NDArray[Any], axis: int) -> bool:
    return bool(np.abs(values.sum(axis=axis, dtype=np.float64) - 1).max() <= _SLACK)
