"""Networks that are not ours, as graphs of a few nodes with random weights.

`dilated` and `attention` have the structure of a DeepLab and of a SegFormer; `plain` is three
convolutions in any of the forms in which segmentation networks are exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str]
ANY: Dims = ("N", 3, "H", "W")


class Graph:
    """Nodes in order; `add` gives the name of what a node makes."""

    def __init__(self, dtype: int = TensorProto.FLOAT) -> None:
        self.random = np.random.default_rng(7)
        self.numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        spread = float(np.prod(shape[1:])) ** -0.5
        return self.constant(self.random.normal(0, 2 * spread, shape), self.numpy_type)

    def conv(self, value: str, given: int, wanted: int, kernel: int = 3, **attributes: Any) -> str:
        dilation = attributes.get("dilations", [1])[0]
        pads = [dilation * (kernel // 2)] * 4
        weight = self.weight(wanted, given, kernel, kernel)
        return self.add("Conv", value, weight, pads=pads, **attributes)

    def write(
        self,
        path: Path,
        outputs: dict[str, tuple[str, int, int]],
        *,
        dims: Dims = ANY,
        dtype: int = TensorProto.FLOAT,
        opset: int = 18,
    ) -> Path:
        """outputs: name -> (what gives it, dtype, rank)."""
        for name, (value, _, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name]))
        graph = helper.make_graph(
            self.nodes,
            "foreign",
            [helper.make_tensor_value_info("image", dtype, dims)],
            [
                helper.make_tensor_value_info(name, kind, [f"{name}_{i}" for i in range(rank)])
                for name, (_, kind, rank) in outputs.items()
            ],
            self.constants,
        )
        opsets = [helper.make_opsetid("", opset)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
        return path


def dilated(path: Path, classes: int = 5, dims: Dims = ANY) -> Path:
    """Stride 4, then 1x1 and dilated convolutions and global pooling side by side; logits there."""
    graph = Graph()
    value = graph.add("Relu", graph.conv("image", 3, 8, strides=[2, 2]))
    value = graph.add("Relu", graph.conv(value, 8, 8, strides=[2, 2]))
    pooled = graph.conv(graph.add("GlobalAveragePool", value), 8, 4, 1)
    plane = graph.add("Shape", value)
    size = graph.add("Gather", plane, graph.constant([0, 2, 3]))
    parts = graph.add("Split", size, graph.constant([1, 2]), axis=0)
    graph.nodes[-1].output.append("plane")
    everywhere = graph.add("Concat", parts, graph.constant([4]), "plane", axis=0)
    branches = [
        graph.conv(value, 8, 4, 1),
        graph.conv(value, 8, 4, dilations=[2, 2]),
        graph.conv(value, 8, 4, dilations=[4, 4]),
        graph.add("Expand", pooled, everywhere),
    ]
    joined = graph.add("Relu", graph.add("Concat", *branches, axis=1))
    logits = graph.conv(joined, 16, classes, 1)
    return graph.write(path, {"logits": (logits, TensorProto.FLOAT, 4)}, dims=dims)


def attention(path: Path, classes: int = 5, dims: Dims = ANY) -> Path:
    """Overlapping patches of stride 4, a transformer block, logits at a quarter of the size."""
    graph = Graph()
    patches = graph.conv("image", 3, 8, 7, strides=[4, 4])
    flat = graph.add("Reshape", patches, graph.constant([0, 8, -1]))
    tokens = graph.add("Transpose", flat, perm=[0, 2, 1])
    ones = [graph.constant(np.ones(8), np.float32) for _ in range(2)]
    normed = graph.add("LayerNormalization", tokens, ones[0])
    query, key, value = (graph.add("MatMul", normed, graph.weight(8, 8)) for _ in range(3))
    turned = graph.add("Transpose", key, perm=[0, 2, 1])
    shares = graph.add("Softmax", graph.add("MatMul", query, turned))
    tokens = graph.add("Add", tokens, graph.add("MatMul", shares, value))
    hidden = graph.add("LayerNormalization", tokens, ones[1])
    hidden = graph.add("MatMul", hidden, graph.weight(8, 16))
    hidden = graph.add("Mul", hidden, graph.add("Sigmoid", hidden))
    tokens = graph.add("Add", tokens, graph.add("MatMul", hidden, graph.weight(16, 8)))
    turned = graph.add("Transpose", tokens, perm=[0, 2, 1])
    maps = graph.add("Reshape", turned, graph.add("Shape", patches))
    logits = graph.conv(maps, 8, classes, 1)
    return graph.write(path, {"logits": (logits, TensorProto.FLOAT, 4)}, dims=dims)


def plain(
    path: Path,
    classes: int = 4,
    *,
    dims: Dims = ANY,
    dtype: int = TensorProto.FLOAT,
    opset: int = 18,
    stride: int = 1,
    pool: int = 1,
    channels_last: bool = False,
    end: str = "",
    labels: str = "",
    auxiliary: bool = False,
    coordinates: bool = False,
    mix: bool = False,
    batch_of_one: bool = False,
) -> Path:
    """stride: of the logits. pool: sides must be multiples of it. channels_last: in the output.

    end: "Softmax" or "Sigmoid" over the scores. labels: "" for scores, "flat" for int64 [N,H,W],
    "kept" for int32 [N,1,H,W]. auxiliary: a second output. coordinates: where a pixel is counts.
    mix: images of a batch see each other. batch_of_one: a shape inside is of one image.
    """
    kind = TensorProto.FLOAT if dtype == TensorProto.UINT8 else dtype
    graph = Graph(kind)
    value = "image"
    if dtype == TensorProto.UINT8:
        bytes_ = graph.add("Cast", value, to=kind)
        value = graph.add("Div", bytes_, graph.constant(255, graph.numpy_type))
    if dims[1] != 3:
        value = graph.add("Transpose", value, perm=[0, 3, 1, 2])
    if mix:
        value = graph.add("Sub", value, graph.add("ReduceMean", value, graph.constant([0])))
    if coordinates:
        width = graph.add("Gather", graph.add("Shape", value), graph.constant(3))
        along = graph.add("Range", graph.constant(0), width, graph.constant(1))
        along = graph.add("Cast", along, to=kind)
        value = graph.add("Add", value, graph.add("Sin", along))
    features = graph.add("Relu", graph.conv(value, 3, 8))
    if pool > 1:
        low = graph.add("MaxPool", features, kernel_shape=[pool, pool], strides=[pool, pool])
        scales = graph.constant([1, 1, pool, pool], np.float32)
        empty = graph.constant([], np.float32)
        features = graph.add("Add", features, graph.add("Resize", low, empty, scales))
    if batch_of_one:
        shape = graph.add("Gather", graph.add("Shape", features), graph.constant([1, 2, 3]))
        shape = graph.add("Concat", graph.constant([1]), shape, axis=0)
        features = graph.add("Reshape", features, shape)
    result = graph.conv(features, 8, classes, strides=[stride, stride])
    if end:
        result = graph.add(end, result, **({"axis": 1} if end == "Softmax" else {}))
    given, rank = kind, 4
    if labels:
        given, rank = (TensorProto.INT64, 3) if labels == "flat" else (TensorProto.INT32, 4)
        result = graph.add("ArgMax", result, axis=1, keepdims=int(labels == "kept"))
        result = graph.add("Cast", result, to=given)
    elif channels_last:
        result = graph.add("Transpose", result, perm=[0, 2, 3, 1])
    outputs = {"out": (result, given, rank)}
    if auxiliary:
        outputs["aux"] = (graph.conv(value, 3, classes + 1), kind, 4)
    return graph.write(path, outputs, dims=dims, dtype=dtype, opset=opset)
