"""Telling what the numbers of an output are: by the caller's word, or by graph and trial runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from model.export.adopt.errors import AdoptError
from model.export.onnx_file import attributes

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
    """Holds what the graph tells: `meaning`, "" if nothing, times `scale` plus `offset`.

    A meaning is "probabilities", "log probabilities", "logits" or "labels"; `node` is the kind of
    node that gave it.
    """

    meaning: str = ""
    node: str = ""
    scale: float = 1.0
    offset: float = 0.0

    @property
    def is_scaled(self) -> bool:
        """Tell of probabilities that do not lie in 0..1 any more. One minus them are some too."""
        ends = sorted((self.offset, self.offset + self.scale))
        return self.meaning == "probabilities" and not np.allclose(ends, (0, 1), atol=_SLACK)


_NOTHING: Final = Evidence()


def evidence_of(graph: onnx.GraphProto, output: str) -> Evidence:
    """Walk back from `output` to the node that made its values. Constants are initializers."""
    return _Walk(graph).back(output)


class _Walk:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
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
        if kind in ("Clip", "Max", "Min") and len(parts) == 1:
            return self._clipped(node, first)
        if kind in ("Concat", "Max", "Mean", "Min"):
            return first if all(part == first for part in parts) else _NOTHING
        if kind == "Log" and first.meaning == "probabilities" and not first.is_scaled:
            return Evidence("log probabilities", first.node)
        if kind == "Neg":
            return replace(first, scale=-first.scale, offset=-first.offset)
        if kind in ("Add", "Sub", "Sum") and len(parts) > 1:
            known = {part.meaning for part in parts if part.meaning}
            return next(p for p in parts if p.meaning) if known == {"logits"} else _NOTHING
        if len(parts) == 1 and kind in _AFFINE:
            return self._affine(node, first)
        return _NOTHING

    def _constant(self, name: str) -> npt.NDArray[Any] | None:
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def _clipped(self, node: onnx.NodeProto, inner: Evidence) -> Evidence:
        """Evidence that outlasts the clipping, where the bounds leave it what it was."""
        low, high = -np.inf, np.inf
        if node.op_type == "Clip":
            given = attributes(node)
            low, high = given.get("min", low), given.get("max", high)
            bounds = [*node.input[1:], "", ""][:2]
        else:
            other = next((name for name in node.input if name in self._constants), "")
            bounds = [other, ""] if node.op_type == "Max" else ["", other]
        known = [self._constant(name) for name in bounds]
        if any(
            name and (value is None or value.size != 1)
            for name, value in zip(bounds, known, strict=True)
        ):
            return _NOTHING
        low, high = (
            float(default if value is None else value.item())
            for value, default in zip(known, (low, high), strict=True)
        )
        if inner.meaning == "probabilities":
            ends = sorted((inner.offset, inner.offset + inner.scale))
            slack = _SLACK * (ends[1] - ends[0])
            return inner if low <= ends[0] + slack and high >= ends[1] - slack else _NOTHING
        if inner.meaning == "logits":
            return inner if low < 0 < high else _NOTHING
        return inner

    def _affine(self, node: onnx.NodeProto, inner: Evidence) -> Evidence:
        """Evidence times and plus constants. Logits stay logits, whatever the factors."""
        kind, names = node.op_type, node.input
        values = [self._constant(name) for name in names]
        if inner.meaning == "logits" and kind != "Div" or not inner.meaning:
            return inner
        constants = [float(v.ravel()[0]) for v in values if v is not None and v.size == 1]
        if len(constants) != sum(v is not None for v in values):
            return inner if inner.meaning == "logits" and values[0] is None else _NOTHING
        constant = constants[0] if constants else 0.0
        if kind in ("Div", "QuantizeLinear") and (values[0] is not None or constant == 0):
            return _NOTHING  # a constant divided by it, or nonsense
        if kind in ("QuantizeLinear", "DequantizeLinear"):
            zero = constants[1] if len(constants) > 1 else 0.0
            if kind == "QuantizeLinear":
                return replace(
                    inner, scale=inner.scale / constant, offset=inner.offset / constant + zero
                )
            return replace(
                inner, scale=inner.scale * constant, offset=(inner.offset - zero) * constant
            )
        if kind == "Mul":
            return replace(inner, scale=inner.scale * constant, offset=inner.offset * constant)
        if kind == "Div":
            return replace(inner, scale=inner.scale / constant, offset=inner.offset / constant)
        if kind == "Sub" and values[0] is not None:
            return replace(inner, scale=-inner.scale, offset=constant - inner.offset)
        return replace(inner, offset=inner.offset + (-constant if kind == "Sub" else constant))


def meaning_of_scores(
    name: str,
    stated: str | None,
    evidence: Evidence,
    results: Sequence[npt.NDArray[Any]],
    axis: int,
) -> str:
    """Say what the scores of several classes are, "" where neither word nor proof does.

    Their arg max is the label in any case; it is a softmax that must know. Raises: AdoptError.
    """
    shown = all(_sum_to_one(values, axis) for values in results)
    by_values = shown and all(_within(values) for values in results)
    by_graph = evidence.meaning == "probabilities" and not evidence.is_scaled
    if stated == "probabilities":
        if not by_graph and not all(_within(values) for values in results):
            raise AdoptError(
                f"{name} is not probabilities: its values leave 0..1; say --output-is logits, or "
                "leave it out"
            )
        return stated if shown else ""
    if stated == "logits":
        if by_values or evidence.meaning == "probabilities":
            by = f", by the graph's {evidence.node}" if evidence.node else ""
            raise AdoptError(f"{name} is probabilities{by}: leave --output-is logits out")
        return stated
    if shown and by_graph or by_values and evidence.meaning != "logits":
        return "probabilities"
    if evidence.meaning in ("logits", "log probabilities") and not by_values:
        return "logits"
    return ""


def meaning_of_one(
    name: str, stated: str | None, evidence: Evidence, results: Sequence[npt.NDArray[Any]]
) -> str:
    """Say what the one score of class 1 is, "" where neither word nor proof does.

    Raises: AdoptError if what is stated is not so.
    """
    inside = all(_within(values) for values in results)
    proven = evidence.meaning == "probabilities" and not evidence.is_scaled
    if stated == "probabilities":
        if not inside and not proven:
            raise AdoptError(
                f"{name} is not probabilities: its values leave 0..1; say --output-is logits"
            )
        return stated
    if stated == "logits":
        if evidence.meaning == "probabilities":
            raise AdoptError(
                f"{name} is probabilities, by the graph's {evidence.node}: leave --output-is "
                "logits out"
            )
        return stated
    if proven:
        return "probabilities"
    return "logits" if evidence.meaning == "logits" and not inside else ""


def _within(values: npt.NDArray[Any]) -> bool:
    return bool(values.min() >= -_SLACK and values.max() <= 1 + _SLACK)


def _sum_to_one(values: npt.NDArray[Any], axis: int) -> bool:
    return bool(np.abs(values.sum(axis=axis, dtype=np.float64) - 1).max() <= _SLACK)
