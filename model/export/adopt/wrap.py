"""The graph that is served: pixels in, the network, labels out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import TensorProto
from onnx_ir.tape import Tape

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
    """Makes a graph from uint8 RGB `image` [N,H,W,3] to uint8 `label_map` [N,H,W], and float
    `logits` [N,C,H,W]."""
    model = ir.from_proto(onnx.compose.add_prefix(network.proto, _PREFIX))
    (pixels,), (raw,) = model.graph.inputs, model.graph.outputs
    inner, weights = list(model.graph), list(model.graph.initializers.values())
    # A value belongs to one graph at a time.
    model.graph.remove(inner)
    for owned in (model.graph.inputs, model.graph.outputs, model.graph.initializers):
        owned.clear()
    images = ir.val(IMAGE, ir.DataType.UINT8, ["batch", "height", "width", 3])
    one = ir.val("one_image", ir.DataType.UINT8, ["height", "width", 3])
    single = probed.one_at_a_time
    nodes = _Nodes(network.opset)
    image = nodes.unsqueeze(one, 0) if single else images
    pixels.replace_all_uses_with(_preprocessed(nodes, image, network, probed, options))
    before = len(nodes.nodes)
    results = {LABEL_MAP: ir.val(LABEL_MAP, ir.DataType.UINT8, ["batch", "height", "width"])}
    labels, scores = _postprocessed(nodes, image, raw, probed, options, logits=logits)
    ends = [labels]
    if scores is not None:
        shape = ir.Shape(["batch", classes, "height", "width"])
        results[LOGITS] = ir.val(LOGITS, ir.DataType.FLOAT, shape)
        ends.append(scores)
    if single:
        ends = [nodes.squeeze(end, 0) for end in ends]
    else:
        for end, result in zip(ends, results.values(), strict=True):
            nodes.op("Identity", [end], output=result)
    every = [*nodes.nodes[:before], *inner, *nodes.nodes[before:]]
    if single:
        for end, result in zip(ends, results.values(), strict=True):
            end.type, end.shape = result.type, ir.Shape((result.shape or ())[1:])
        body = ir.Graph([one], ends, nodes=every, name="one_image_graph")
        every = [
            ir.node(
                "Scan",
                [images],
                {"body": body, "num_scan_inputs": 1},
                outputs=list(results.values()),
                name="images",
            )
        ]
    graph = ir.Graph(
        [images],
        list(results.values()),
        nodes=every,
        initializers=[*weights, *nodes.initializers],
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    )
    return ir.to_proto(ir.Model(graph, ir_version=model.ir_version))


class _Nodes(Tape):
    """Collects nodes and constants to be added, in the words of the network's opset."""

    def __init__(self, opset: int) -> None:
        super().__init__()
        self._opset = opset

    def add(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.op(kind, inputs, attributes)

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike) -> ir.Value:
        tensor = ir.tensor(np.array(value, dtype), name=f"constant_{len(self.initializers)}")
        return self.initializer(tensor)

    def cast(self, value: ir.Value, to: int) -> ir.Value:
        return self.add("Cast", value, to=to)

    def squeeze(self, value: ir.Value, axis: int) -> ir.Value:
        return self._axes("Squeeze", value, axis)

    def unsqueeze(self, value: ir.Value, axis: int) -> ir.Value:
        return self._axes("Unsqueeze", value, axis)

    def _axes(self, kind: str, value: ir.Value, axis: int) -> ir.Value:
        if self._opset < 13:
            return self.add(kind, value, axes=[axis])
        return self.add(kind, value, self.constant([axis], np.int64))

    def resize(
        self,
        value: ir.Value,
        *,
        sizes: ir.Value | None = None,
        scales: ir.Value | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Resizes; inputs that are not used could not be left out before opset 13."""
        empty = None if self._opset >= 13 else self.constant([], np.float32)
        inputs = [value, empty, scales or empty, *([sizes] if sizes else [])]
        return self.add("Resize", *inputs, **attributes)

    def part_of_shape(self, value: ir.Value, *axes: int) -> ir.Value:
        return self.add("Gather", self.add("Shape", value), self.constant(axes, np.int64), axis=0)


def _preprocessed(
    nodes: _Nodes, image: ir.Value, network: Network, probed: Probed, options: AdoptOptions
) -> ir.Value:
    """Turns uint8 [N,H,W,3] into what the network takes."""
    pixels = options.preprocessing
    value = nodes.add("Transpose", image, perm=[0, 3, 1, 2])
    if pixels.color_order == "BGR":
        value = nodes.add("Gather", value, nodes.constant([2, 1, 0], np.int64), axis=1)
    whole = network.dtype in INTEGERS
    if not whole or probed.size:
        value = nodes.cast(value, TensorProto.FLOAT)
    if probed.size:
        rest = nodes.constant([3, *probed.size], np.int64)
        # With what lies outside left out, as Pillow does at the edges.
        averaged: dict[str, Any] = (
            {"antialias": 1, "exclude_outside": 1} if options.antialias else {}
        )
        value = nodes.resize(
            value,
            sizes=nodes.add("Concat", nodes.part_of_shape(image, 0), rest, axis=0),
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            **averaged,
        )
        if whole:
            value = nodes.add("Round", value)
    if not is_plain(pixels):
        factor, offset = (np.reshape(part, (1, 3, 1, 1)) for part in pixels.factor_and_offset())
        value = nodes.add("Mul", value, nodes.constant(factor, np.float32))
        value = nodes.add("Add", value, nodes.constant(offset, np.float32))
    if network.dtype != TensorProto.FLOAT:
        value = nodes.cast(value, network.dtype)
    return nodes.add("Transpose", value, perm=[0, 2, 3, 1]) if network.layout == "NHWC" else value


def _postprocessed(
    nodes: _Nodes,
    image: ir.Value,
    raw: ir.Value,
    probed: Probed,
    options: AdoptOptions,
    *,
    logits: bool,
) -> tuple[ir.Value, ir.Value | None]:
    """Gives labels uint8 [N,H,W] and, if wanted, logits float [N,C,H,W]."""
    output = probed.output
    if output.kind == "label_map":
        return _labels(nodes, image, raw, probed), None
    if output.axis == 1:
        value = raw
    elif output.axis is None:
        value = nodes.unsqueeze(raw, 1)
    else:
        value = nodes.add("Transpose", raw, perm=[0, 3, 1, 2])
    scores = _at_image_size(
        nodes,
        nodes.cast(value, TensorProto.FLOAT),
        image,
        probed,
        mode="linear",
        coordinate_transformation_mode="align_corners" if options.align_corners else "half_pixel",
    )
    if output.kind == "scores":
        index = nodes.add("ArgMax", scores, axis=1, keepdims=0)
        labels = nodes.cast(index, TensorProto.UINT8)
    else:
        above = nodes.add("Greater", scores, nodes.constant(output.threshold, np.float32))
        labels = nodes.squeeze(nodes.cast(above, TensorProto.UINT8), 1)
    return labels, _logits(nodes, scores, output) if logits else None


def _labels(nodes: _Nodes, image: ir.Value, raw: ir.Value, probed: Probed) -> ir.Value:
    axis = probed.output.axis
    value = raw if axis is None else nodes.squeeze(raw, axis)
    if not probed.full_size:
        value = _at_image_size(
            nodes,
            nodes.cast(nodes.unsqueeze(value, 1), TensorProto.FLOAT),
            image,
            probed,
            mode="nearest",
            nearest_mode="round_prefer_floor",
            coordinate_transformation_mode="half_pixel",
        )
        value = nodes.squeeze(value, 1)
    return nodes.cast(value, TensorProto.UINT8)


def _at_image_size(
    nodes: _Nodes, value: ir.Value, image: ir.Value, probed: Probed, **attributes: Any
) -> ir.Value:
    """Resizes [N,C,h,w] to [N,C,H,W] of the image."""
    if probed.full_size:
        return value
    aligned = attributes["coordinate_transformation_mode"] == "align_corners"
    if probed.factor and not aligned:
        # By a fixed factor, from which `receptive_field` can tell how far a label sees.
        scales = nodes.constant([1, 1, probed.factor, probed.factor], np.float32)
        return nodes.resize(value, scales=scales, **attributes)
    parts = nodes.part_of_shape(value, 0, 1), nodes.part_of_shape(image, 1, 2)
    return nodes.resize(value, sizes=nodes.add("Concat", *parts, axis=0), **attributes)


def _logits(nodes: _Nodes, scores: ir.Value, output: Output) -> ir.Value:
    """Makes logits whose softmax is the network's probabilities, and whose arg max the labels."""
    threshold = np.float32(output.threshold)
    shares = output.meaning == "probabilities"
    if output.kind == "score":
        if shares:
            other = nodes.add("Sub", nodes.constant(1, np.float32), scores)
            first = nodes.add("Mul", other, nodes.constant(threshold, np.float32))
            second = nodes.add("Mul", scores, nodes.constant(1 - threshold, np.float32))
        else:
            nothing = nodes.add("Mul", scores, nodes.constant(0, np.float32))
            first = nodes.add("Add", nothing, nodes.constant(threshold, np.float32))
            second = scores
        scores = nodes.add("Concat", first, second, axis=1)
    if shares:
        scores = nodes.add("Max", scores, nodes.constant(_TINY, np.float32))
        scores = nodes.add("Log", scores)
    return scores
