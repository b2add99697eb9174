"""An exported network of three convolutions, as a file to be made smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from model.contract import METADATA_KEY, Contract
from tests.drawing import street
from tests.tiny_models import contract

LAYERS = ["conv1_1", "conv1_2"]


def network(centre: float = 128.0, scale: float = 1.0) -> onnx.ModelProto:
    """Two 3x3 convolutions with ReLU, a 1x1 score layer, arg max. `scale`: of the first one's
    weights, undone in the second one's."""
    random = np.random.default_rng(0)
    weights = {
        "conv1_1.weight": random.normal(size=(8, 3, 3, 3)) * scale,
        "conv1_2.weight": random.normal(size=(8, 8, 3, 3)) / 4 / scale,
        "score.weight": random.normal(size=(3, 8, 1, 1)),
        "centre": np.array(centre),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["nchw"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "centre"], ["centred"]),
        helper.make_node("Div", ["centred", "centre"], ["x0"]),
        helper.make_node("Conv", ["x0", "conv1_1.weight"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["x1"]),
        helper.make_node("Conv", ["x1", "conv1_2.weight"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["x2"]),
        helper.make_node("Conv", ["x2", "score.weight"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["index"], axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["label_map"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("label_map", TensorProto.UINT8, ["N", "H", "W"])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write(path: Path, proto: onnx.ModelProto, with_contract: bool = True) -> Path:
    if with_contract:
        helper.set_model_props(proto, {METADATA_KEY: contract("small").to_json()})
    onnx.save(proto, str(path))
    return path


def read_contract(path: Path) -> Contract:
    props = {p.key: p.value for p in onnx.load(str(path)).metadata_props}
    return Contract.from_metadata(props, str(path))


def write_images(folder: Path) -> Path:
    """Three, of other sizes, to calibrate with."""
    folder.mkdir()
    for index, size in enumerate([(40, 50), (31, 64), (48, 48)]):
        Image.fromarray(street(*size)).save(folder / f"{index}.png")
    return folder
