"""The graph that is served: pixels in, the network, labels out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.adopt.network import Network
from model.adopt.trial import Choices, Findings

IMAGE, LABEL_MAP, LOGITS = "image", "label_map", "logits"
_PREFIX = "network/"
_TINY = 1e-30


def served(
    network: Network, findings: Findings, choices: Choices, classes: int, *, logits: bool
) -> onnx.ModelProto:
    """uint8 RGB `image` [N,H,W,3] -> uint8 `label_map` [N,H,W], and float `logits` [N,C,H,W]."""
    proto = onnx.compose.add_prefix(network.proto, _PREFIX)
    graph, ours = proto.graph, _Nodes(network.opset)
    output = _PREFIX + network.output
    _keep_only(graph, output)
    single = findings.one_at_a_time
    image = ours.unsqueeze("one_image", 0) if single else IMAGE
    _before(ours, image, network, findings, choices, into=_PREFIX + network.input)
    before, ours.nodes = ours.nodes, []
    labels, scores = _after(ours, image, output, findings, choices, logits=logits)
    wanted = {LABEL_MAP: labels, LOGITS: scores} if scores else {LABEL_MAP: labels}
    axes: dict[str, list[str | int]] = {
        LABEL_MAP: ["height", "width"],
        LOGITS: [classes, "height", "width"],
    }
    kinds: dict[str, int] = {LABEL_MAP: TensorProto.UINT8, LOGITS: TensorProto.FLOAT}
    if single:
        ends = [ours.squeeze(value, 0) for value in wanted.values()]
    else:
        for name, value in wanted.items():
            ours.add("Identity", [value], into=name)
    nodes = [*before, *graph.node, *ours.nodes]
    if single:
        body = helper.make_graph(
            nodes,
            "one_picture",
            [helper.make_tensor_value_info("one_image", TensorProto.UINT8, ["height", "width", 3])],
            [
                helper.make_tensor_value_info(end, kinds[name], axes[name])
                for name, end in zip(wanted, ends, strict=True)
            ],
        )
        nodes = [
            helper.make_node(
                "Scan", [IMAGE], list(wanted), name="pictures", body=body, num_scan_inputs=1
            )
        ]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(ours.constants)
    graph.input.append(
        helper.make_tensor_value_info(IMAGE, TensorProto.UINT8, ["batch", "height", "width", 3])
    )
    graph.output.extend(
        helper.make_tensor_value_info(name, kinds[name], ["batch", *axes[name]]) for name in wanted
    )
    return proto


class _Nodes:
    """Nodes and constants to be added, with names that the network cannot have."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._count = 0

    def add(self, kind: str, inputs: Sequence[str], into: str = "", **attributes: Any) -> str:
        self._count += 1
        name = into or f"{kind.lower()}_{self._count}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def cast(self, value: str, to: int) -> str:
        return self.add("Cast", [value], to=to)

    def squeeze(self, value: str, axis: int) -> str:
        return self._axes("Squeeze", value, axis)

    def unsqueeze(self, value: str, axis: int) -> str:
        return self._axes("Unsqueeze", value, axis)

    def _axes(self, kind: str, value: str, axis: int) -> str:
        if self.opset < 13:
            return self.add(kind, [value], axes=[axis])
        return self.add(kind, [value, self.constant([axis], np.int64)])

    def resize(self, value: str, *, sizes: str = "", scales: str = "", **attributes: Any) -> str:
        """Inputs that are not used could not be left out before opset 13."""
        empty = "" if self.opset >= 13 else self.constant([], np.float32)
        inputs = [value, empty, scales or empty, *([sizes] if sizes else [])]
        return self.add("Resize", inputs, **attributes)

    def part_of_shape(self, value: str, axes: Sequence[int]) -> str:
        shape = self.add("Shape", [value])
        return self.add("Gather", [shape, self.constant(axes, np.int64)], axis=0)


def _before(
    ours: _Nodes, image: str, network: Network, findings: Findings, choices: Choices, into: str
) -> None:
    """From uint8 [N,H,W,3] to the tensor `into`."""
    pixels = choices.pixels
    value = ours.add("Transpose", [image], perm=[0, 3, 1, 2])
    if pixels.color_order == "BGR":
        value = ours.add("Gather", [value, ours.constant([2, 1, 0], np.int64)], axis=1)
    bytes_stay = network.dtype == TensorProto.UINT8
    if not bytes_stay or findings.size:
        value = ours.cast(value, TensorProto.FLOAT)
    if findings.size:
        count = ours.part_of_shape(image, [0])
        rest = ours.constant([3, *findings.size], np.int64)
        # With what lies outside left out, as Pillow does at the edges.
        averaged: dict[str, Any] = (
            {"antialias": 1, "exclude_outside": 1} if choices.antialias else {}
        )
        value = ours.resize(
            value,
            sizes=ours.add("Concat", [count, rest], axis=0),
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            **averaged,
        )
        if bytes_stay:
            value = ours.cast(ours.add("Round", [value]), TensorProto.UINT8)
    if not pixels.plain:
        factor, offset = (np.reshape(part, (1, 3, 1, 1)) for part in pixels.factor_and_offset())
        value = ours.add("Mul", [value, ours.constant(factor, np.float32)])
        value = ours.add("Add", [value, ours.constant(offset, np.float32)])
    if network.dtype == TensorProto.FLOAT16:
        value = ours.cast(value, TensorProto.FLOAT16)
    if network.layout == "NHWC":
        value = ours.add("Transpose", [value], perm=[0, 2, 3, 1])
    ours.add("Identity", [value], into=into)


def _after(
    ours: _Nodes, image: str, raw: str, findings: Findings, choices: Choices, *, logits: bool
) -> tuple[str, str]:
    """Labels uint8 [N,H,W] and logits float [N,C,H,W], "" where there are none."""
    if findings.kind == "label_map":
        return _labels(ours, image, raw, findings), ""
    value = ours.add("Transpose", [raw], perm=[0, 3, 1, 2]) if findings.axis == 3 else raw
    scores = _to_picture(
        ours,
        ours.cast(value, TensorProto.FLOAT),
        image,
        findings,
        mode="linear",
        coordinate_transformation_mode="align_corners" if choices.align_corners else "half_pixel",
    )
    if findings.kind == "scores":
        index = ours.add("ArgMax", [scores], axis=1, keepdims=0)
        labels = ours.cast(index, TensorProto.UINT8)
    else:
        above = ours.add("Greater", [scores, ours.constant(findings.threshold, np.float32)])
        labels = ours.squeeze(ours.cast(above, TensorProto.UINT8), 1)
    return labels, _logits(ours, scores, findings) if logits else ""


def _labels(ours: _Nodes, image: str, raw: str, findings: Findings) -> str:
    value = raw if findings.axis is None else ours.squeeze(raw, findings.axis)
    if not findings.full_size:
        value = ours.cast(ours.unsqueeze(value, 1), TensorProto.FLOAT)
        value = _to_picture(
            ours,
            value,
            image,
            findings,
            mode="nearest",
            nearest_mode="round_prefer_floor",
            coordinate_transformation_mode="half_pixel",
        )
        value = ours.squeeze(value, 1)
    return ours.cast(value, TensorProto.UINT8)


def _to_picture(ours: _Nodes, value: str, image: str, findings: Findings, **attributes: Any) -> str:
    """[N,C,h,w] -> [N,C,H,W] of the picture."""
    if findings.full_size:
        return value
    aligned = attributes["coordinate_transformation_mode"] == "align_corners"
    if findings.factor and not aligned:
        # By a fixed factor, from which `model.context` can tell how far a label sees.
        scales = ours.constant([1, 1, findings.factor, findings.factor], np.float32)
        return ours.resize(value, scales=scales, **attributes)
    parts = [ours.part_of_shape(value, [0, 1]), ours.part_of_shape(image, [1, 2])]
    return ours.resize(value, sizes=ours.add("Concat", parts, axis=0), **attributes)


def _logits(ours: _Nodes, scores: str, findings: Findings) -> str:
    """Such that their softmax is the network's probabilities, and their arg max the labels."""
    threshold = np.float32(findings.threshold)
    if findings.kind == "score":
        if findings.probabilities:
            other = ours.add("Sub", [ours.constant(1, np.float32), scores])
            first = ours.add("Mul", [other, ours.constant(threshold, np.float32)])
            second = ours.add("Mul", [scores, ours.constant(1 - threshold, np.float32)])
        else:
            nothing = ours.add("Mul", [scores, ours.constant(0, np.float32)])
            first = ours.add("Add", [nothing, ours.constant(threshold, np.float32)])
            second = scores
        scores = ours.add("Concat", [first, second], axis=1)
    if findings.probabilities:
        scores = ours.add("Max", [scores, ours.constant(_TINY, np.float32)])
        scores = ours.add("Log", [scores])
    return scores


def _keep_only(graph: onnx.GraphProto, output: str) -> None:
    """Leaves out what only other outputs need."""
    wanted, kept = {output}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= _read_by(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    held = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(held)


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Its inputs, and those of its subgraphs' nodes."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for each in inner.node:
                names |= _read_by(each)
            names |= {value.name for value in inner.output}
    return names
