"""The graph that is served: pixels in, the network, labels out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from model.export.adopt.network import INTEGERS, Network
from model.export.adopt.options import AdoptOptions
from model.export.adopt.output import Output
from model.export.adopt.preprocessing import is_plain
from model.export.adopt.probe import Probed

IMAGE, LABEL_MAP, LOGITS = "image", "label_map", "logits"
_PREFIX = "network/"
_TINY = 1e-30


def wrap(
    network: Network, probed: Probed, options: AdoptOptions, classes: int, *, logits: bool
) -> onnx.ModelProto:
    """uint8 RGB `image` [N,H,W,3] -> uint8 `label_map` [N,H,W], and float `logits` [N,C,H,W]."""
    proto = onnx.compose.add_prefix(network.proto, _PREFIX)
    graph, builder = proto.graph, _Nodes(network.opset)
    output = _PREFIX + network.output
    _keep_only(graph, output)
    single = probed.one_at_a_time
    image = builder.unsqueeze("one_image", 0) if single else IMAGE
    _add_preprocessing(builder, image, network, probed, options, into=_PREFIX + network.input)
    before, builder.nodes = builder.nodes, []
    labels, scores = _add_postprocessing(builder, image, output, probed, options, logits=logits)
    wanted = {LABEL_MAP: labels, LOGITS: scores} if scores else {LABEL_MAP: labels}
    axes: dict[str, list[str | int]] = {
        LABEL_MAP: ["height", "width"],
        LOGITS: [classes, "height", "width"],
    }
    kinds: dict[str, int] = {LABEL_MAP: TensorProto.UINT8, LOGITS: TensorProto.FLOAT}
    if single:
        ends = [builder.squeeze(value, 0) for value in wanted.values()]
    else:
        for name, value in wanted.items():
            builder.add("Identity", [value], into=name)
    nodes = [*before, *graph.node, *builder.nodes]
    if single:
        body = helper.make_graph(
            nodes,
            "one_image_graph",
            [helper.make_tensor_value_info("one_image", TensorProto.UINT8, ["height", "width", 3])],
            [
                helper.make_tensor_value_info(end, kinds[name], axes[name])
                for name, end in zip(wanted, ends, strict=True)
            ],
        )
        nodes = [
            helper.make_node(
                "Scan", [IMAGE], list(wanted), name="images", body=body, num_scan_inputs=1
            )
        ]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend(builder.constants)
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


def _add_preprocessing(
    builder: _Nodes, image: str, network: Network, probed: Probed, options: AdoptOptions, into: str
) -> None:
    """From uint8 [N,H,W,3] to the tensor `into`."""
    pixels = options.preprocessing
    value = builder.add("Transpose", [image], perm=[0, 3, 1, 2])
    if pixels.color_order == "BGR":
        value = builder.add("Gather", [value, builder.constant([2, 1, 0], np.int64)], axis=1)
    whole = network.dtype in INTEGERS
    if not whole or probed.size:
        value = builder.cast(value, TensorProto.FLOAT)
    if probed.size:
        count = builder.part_of_shape(image, [0])
        rest = builder.constant([3, *probed.size], np.int64)
        # With what lies outside left out, as Pillow does at the edges.
        averaged: dict[str, Any] = (
            {"antialias": 1, "exclude_outside": 1} if options.antialias else {}
        )
        value = builder.resize(
            value,
            sizes=builder.add("Concat", [count, rest], axis=0),
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            **averaged,
        )
        if whole:
            value = builder.add("Round", [value])
    if not is_plain(pixels):
        factor, offset = (np.reshape(part, (1, 3, 1, 1)) for part in pixels.factor_and_offset())
        value = builder.add("Mul", [value, builder.constant(factor, np.float32)])
        value = builder.add("Add", [value, builder.constant(offset, np.float32)])
    if network.dtype != TensorProto.FLOAT:
        value = builder.cast(value, network.dtype)
    if network.layout == "NHWC":
        value = builder.add("Transpose", [value], perm=[0, 2, 3, 1])
    builder.add("Identity", [value], into=into)


def _add_postprocessing(
    builder: _Nodes, image: str, raw: str, probed: Probed, options: AdoptOptions, *, logits: bool
) -> tuple[str, str]:
    """Labels uint8 [N,H,W] and logits float [N,C,H,W], "" where there are none."""
    output = probed.output
    if output.kind == "label_map":
        return _labels(builder, image, raw, probed), ""
    value = raw
    if output.axis != 1:
        # Without an axis of channels, one is made.
        value = (
            builder.add("Transpose", [raw], perm=[0, 3, 1, 2])
            if output.axis
            else builder.unsqueeze(raw, 1)
        )
    scores = _to_image_size(
        builder,
        builder.cast(value, TensorProto.FLOAT),
        image,
        probed,
        mode="linear",
        coordinate_transformation_mode="align_corners" if options.align_corners else "half_pixel",
    )
    if output.kind == "scores":
        index = builder.add("ArgMax", [scores], axis=1, keepdims=0)
        labels = builder.cast(index, TensorProto.UINT8)
    else:
        above = builder.add("Greater", [scores, builder.constant(output.threshold, np.float32)])
        labels = builder.squeeze(builder.cast(above, TensorProto.UINT8), 1)
    return labels, _logits(builder, scores, output) if logits else ""


def _labels(builder: _Nodes, image: str, raw: str, probed: Probed) -> str:
    value = raw if probed.output.axis is None else builder.squeeze(raw, probed.output.axis)
    if not probed.full_size:
        value = builder.cast(builder.unsqueeze(value, 1), TensorProto.FLOAT)
        value = _to_image_size(
            builder,
            value,
            image,
            probed,
            mode="nearest",
            nearest_mode="round_prefer_floor",
            coordinate_transformation_mode="half_pixel",
        )
        value = builder.squeeze(value, 1)
    return builder.cast(value, TensorProto.UINT8)


def _to_image_size(
    builder: _Nodes, value: str, image: str, probed: Probed, **attributes: Any
) -> str:
    """[N,C,h,w] -> [N,C,H,W] of the image."""
    if probed.full_size:
        return value
    aligned = attributes["coordinate_transformation_mode"] == "align_corners"
    if probed.factor and not aligned:
        # By a fixed factor, from which `receptive_field` can tell how far a label sees.
        scales = builder.constant([1, 1, probed.factor, probed.factor], np.float32)
        return builder.resize(value, scales=scales, **attributes)
    parts = [builder.part_of_shape(value, [0, 1]), builder.part_of_shape(image, [1, 2])]
    return builder.resize(value, sizes=builder.add("Concat", parts, axis=0), **attributes)


def _logits(builder: _Nodes, scores: str, output: Output) -> str:
    """Such that their softmax is the network's probabilities, and their arg max the labels."""
    threshold = np.float32(output.threshold)
    if output.kind == "score":
        if output.meaning == "probabilities":
            other = builder.add("Sub", [builder.constant(1, np.float32), scores])
            first = builder.add("Mul", [other, builder.constant(threshold, np.float32)])
            second = builder.add("Mul", [scores, builder.constant(1 - threshold, np.float32)])
        else:
            nothing = builder.add("Mul", [scores, builder.constant(0, np.float32)])
            first = builder.add("Add", [nothing, builder.constant(threshold, np.float32)])
            second = scores
        scores = builder.add("Concat", [first, second], axis=1)
    if output.meaning == "probabilities":
        scores = builder.add("Max", [scores, builder.constant(_TINY, np.float32)])
        scores = builder.add("Log", [scores])
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
