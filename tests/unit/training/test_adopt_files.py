"""Containers of other times and exporters are taken, or refused in a sentence that helps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cli.main import main
from model.export.adopt import PRESETS, AdoptError, AdoptOptions, open_network
from tests.foreign_graphs import Graph, plain
from tests.unit.training.test_adopt import adopted, class_list, served

DOUBLE, INT32, INT64 = TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64


def old_container(path: Path, *, ir: int, opset: int, listed: bool = True) -> Path:
    """Writes files as PyTorch 1.2, tf2onnx and Keras did: weights are inputs as well."""
    proto = onnx.load(str(plain(path, stride=2, opset=opset)))
    proto.ir_version = ir
    if listed:
        proto.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            for t in proto.graph.initializer
        )
    onnx.save(proto, str(path))
    return path


@pytest.mark.parametrize(("ir", "opset"), [(3, 7), (3, 8), (3, 9), (4, 10), (6, 11), (7, 12)])
@pytest.mark.parametrize("listed", [True, False])
def test_weights_as_inputs(ir: int, opset: int, listed: bool, tmp_path: Path) -> None:
    path = old_container(tmp_path / "n.onnx", ir=ir, opset=opset, listed=listed)
    report = adopted(tmp_path, path, logits=True)
    assert report.label_agreement == 1
    made = onnx.load(report.path)
    assert [value.name for value in made.graph.input] == ["image"] and made.ir_version >= 8


@pytest.mark.parametrize("opset", [7, 9, 10])
def test_upsample(opset: int, tmp_path: Path) -> None:
    """It enlarged before there was Resize."""
    graph = Graph()
    value = graph.conv("image", 3, 4, strides=[2, 2])
    if opset == 7:
        value = graph.add("Upsample", value, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest")
    else:
        kind = "Upsample" if opset == 9 else "Resize"
        value = graph.add(kind, value, graph.constant([1, 1, 2, 2], np.float32), mode="linear")
    path = graph.write(tmp_path / "n.onnx", {"out": (value, TensorProto.FLOAT, 4)}, opset=opset)
    assert adopted(tmp_path, path).label_agreement == 1


@pytest.mark.parametrize(
    ("dtype", "preprocessing"), [(DOUBLE, "imagenet"), (INT32, "none"), (INT64, "none")]
)
def test_kinds_of_input(dtype: int, preprocessing: str, tmp_path: Path) -> None:
    graph = Graph()
    value = graph.add("Cast", "image", to=TensorProto.FLOAT)
    value = graph.conv(graph.add("Div", value, graph.constant(255, np.float32)), 3, 4)
    value = graph.add("Cast", value, to=DOUBLE)
    path = graph.write(tmp_path / "n.onnx", {"out": (value, DOUBLE, 4)}, dtype=dtype)
    for size in (None, (48, 64)):
        options = AdoptOptions(PRESETS[preprocessing], size=size)
        assert adopted(tmp_path, path, options=options, logits=True).label_agreement >= 0.999
    if dtype != DOUBLE:
        with pytest.raises(AdoptError, match=r"takes pixels as int.*say --preprocessing none"):
            adopted(tmp_path, path)


@pytest.mark.parametrize("dims", [("a", 3, "b", "b"), (1, 3, "side", "side"), (-1, 3, -1, -1)])
def test_names_of_axes(dims: Any, tmp_path: Path) -> None:
    """One name for both sides, or a number that none can have."""
    path = plain(tmp_path / "n.onnx", dims=("N", 3, "H", "W"))
    proto = onnx.load(str(path))
    for place, dim in zip(proto.graph.input[0].type.tensor_type.shape.dim, dims, strict=True):
        place.Clear()
        if isinstance(dim, str):
            place.dim_param = dim
        else:
            place.dim_value = dim
    onnx.save(proto, str(path))
    report = adopted(tmp_path, path)
    assert report.size is None and report.one_at_a_time == (dims[0] == 1)


def test_shapes_nobody_wrote(tmp_path: Path) -> None:
    path = plain(tmp_path / "n.onnx")
    proto = onnx.load(str(path))
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, str(path))
    with pytest.raises(AdoptError, match=r"say --input-layout NCHW or NHWC"):
        adopted(tmp_path, path)
    assert adopted(tmp_path, path, input_layout="NCHW").label_agreement == 1


def test_a_sequence_of_results(tmp_path: Path) -> None:
    graph = Graph()
    scores = graph.conv("image", 3, 4)
    both = graph.add("SequenceConstruct", scores, graph.conv("image", 3, 4))
    path = graph.write(tmp_path / "n.onnx", {"out": (scores, TensorProto.FLOAT, 4)})
    proto = onnx.load(str(path))
    inner = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    kind = helper.make_sequence_type_proto(inner)
    proto.graph.output.append(helper.make_value_info(both, kind))
    onnx.save(proto, str(path))
    with pytest.raises(AdoptError, match=r"say --output with one of 'out' float.*sequence$"):
        adopted(tmp_path, path)
    with pytest.raises(AdoptError, match=r"is a sequence_type, not a tensor: export"):
        adopted(tmp_path, path, output=both)
    assert adopted(tmp_path, path, output="out").label_agreement == 1


def test_external_weights(tmp_path: Path) -> None:
    proto = onnx.load(str(plain(tmp_path / "inside.onnx")))
    path = tmp_path / "net.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="net.bin", size_threshold=0)
    report = adopted(tmp_path, path)
    # The file that is served needs no other.
    (tmp_path / "net.bin").rename(tmp_path / "elsewhere.bin")
    served(report)
    with pytest.raises(AdoptError, match=r"cannot be read .*net\.bin.* must lie beside it"):
        open_network(path)


def test_weights_cut_short(tmp_path: Path) -> None:
    proto = onnx.load(str(plain(tmp_path / "inside.onnx")))
    path = tmp_path / "net.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="net.bin", size_threshold=0)
    (tmp_path / "net.bin").write_bytes((tmp_path / "net.bin").read_bytes()[:100])
    with pytest.raises(AdoptError, match=r"cannot be read .*xternal data.* must lie beside"):
        open_network(path)


def one_class(path: Path) -> Path:
    """Class 2 everywhere but where the image is quite white."""
    proto = onnx.load(str(plain(path)))
    bias = np.array([0, 0, 50, 0], np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    next(n for n in reversed(proto.graph.node) if n.op_type == "Conv").input.append("bias")
    onnx.save(proto, str(path))
    return path


def test_a_comparison_that_proves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = one_class(tmp_path / "n.onnx")
    words = ["adopt", str(network), "--name", "net", "--classes", str(class_list(tmp_path, 4))]
    words += ["--repository", str(tmp_path / "models"), "--normalise", "unit"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "prove nothing" in report["warning"] and report["label_agreement"] == 1
    # Nor may parts of an image be cut out, for the trial of that shows as little.
    assert report["context_px"] is None
    assert main(words) == 0
    assert "warning: every image compared is of one class" in capsys.readouterr().out
    assert "prove nothing" in (tmp_path / "models/net/README.md").read_text()


def test_real_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = plain(tmp_path / "n.onnx", pool=4)
    folder = tmp_path / "images"
    words = ["adopt", str(network), "--name", "net", "--classes", str(class_list(tmp_path, 4))]
    words += ["--repository", str(tmp_path / "models"), "--normalise", "unit", "--json"]
    words += ["--images", str(folder)]
    assert main(words) == 1
    assert "there is no folder" in capsys.readouterr().err
    folder.mkdir()
    assert main(words) == 1
    assert "holds no image" in capsys.readouterr().err
    pixels = np.random.default_rng(1).integers(0, 256, (1030, 37, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "tall.png")
    assert main(words) == 0
    given = json.loads(capsys.readouterr().out)["compared"][-1]
    assert (given["kind"], given["height"], given["width"]) == ("given", 1024, 40)
    (folder / "bad.png").write_bytes(b"no image")
    assert main(words) == 1
    assert "bad.png" in capsys.readouterr().err


def test_the_option_of_old(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["adopt", "n.onnx", "--name", "net", "--classes", str(class_list(tmp_path, 4))]
    assert main([*words, "--normalise", "unit", "--output-kind", "label_map"]) == 1
    assert "--output-is" in capsys.readouterr().err
