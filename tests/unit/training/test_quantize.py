"""`fcn quantize`: an int8 file that does what the fp32 one does, or a clear refusal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from cli.main import main
from model.export.fp32_model import load_fp32, simulate
from model.export.quantize import METHODS, Quantizer
from tests.drawing import street
from tests.exports import SMALL, exported
from tests.unit.training.small_network import (
    LAYERS,
    network,
    read_contract,
    write,
)


def quantize(words: Sequence[str | Path]) -> int:
    return main(["quantize", *map(str, words)])


@pytest.mark.parametrize("method", METHODS)
def test_writes_a_file_beside_the_model(
    model: Path, images: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize([model, "--calibrate", images, "--method", method, "--json",
                     "--min-agreement", "0.9"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    report = json.loads(out[out.index("{") :])
    target = model.with_name("model.int8.onnx")
    assert report["path"] == str(target)
    assert report["agreement"] >= 0.9
    assert [row["layer"] for row in report["layers"]] == LAYERS
    assert all(0 < row["agreement"] <= 1 for row in report["layers"])
    assert read_contract(target).precision == "int8"
    assert read_contract(target).classes == read_contract(model).classes
    session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
    image = street(33, 47)[None]
    labels = session.run(["label_map"], {"image": image})[0]
    exact = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    wanted = exact.run(["label_map"], {"image": image})[0]
    assert (labels == wanted).mean() > 0.85


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_labels_of_one_class_prove_little(
    precision: str, model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[str | Path] = [
        model,
        "--calibrate",
        images,
        "--to",
        precision,
        "--min-agreement",
        "0.5",
    ]
    assert quantize(words) == 0
    assert "warning" not in capsys.readouterr().out
    proto = onnx.load(str(model))
    node = next(n for n in proto.graph.node if "score.weight" in n.input)
    node.input.append("score.bias")
    bias = np.array([0, 1e4, 0], np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(bias, "score.bias"))
    onnx.save(proto, str(model))
    assert quantize([*words, "--overwrite"]) == 0
    assert "all of one class, which proves little" in capsys.readouterr().out


def test_weights_are_bytes_by_channel_and_the_tail_is_float(model: Path, images: Path) -> None:
    assert quantize([model, "--calibrate", images, "--min-agreement", "0.5"]) == 0
    graph = onnx.load(str(model.with_name("model.int8.onnx"))).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    eight = [t for t in tensors.values() if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
    assert len(eight) == len(LAYERS)
    scales = [n.input[1] for n in graph.node if n.input and n.input[0] in {t.name for t in eight}]
    assert [list(tensors[name].dims) for name in scales] == [[8], [8]]
    assert tensors["score.weight"].data_type == TensorProto.FLOAT


def test_pixels_need_no_normalisation(model: Path) -> None:
    """(x - 128) / 128 is what 8-bit pixels with that scale and zero point mean."""
    float_model = load_fp32(model)
    quantized = Quantizer(float_model, [street(40, 50)]).quantize(LAYERS)
    kinds = [node.op_type for node in quantized.graph.node]
    assert not {"Sub", "Div"} & set(kinds)
    first = next(n for n in quantized.graph.node if n.name == "pixels")
    tensors = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    assert tensors[first.input[1]] == np.float32(1 / 128)
    assert tensors[first.input[2]] == 128
    simulate(quantized).run(None, {"image": street(20, 20)[None]})


def test_other_normalisations_stay(tmp_path: Path) -> None:
    float_model = load_fp32(write(tmp_path / "m.onnx", network(centre=127.5)))
    quantized = Quantizer(float_model, [street(40, 50)]).quantize(LAYERS)
    assert {"Sub", "Div"} <= {node.op_type for node in quantized.graph.node}


def test_the_plain_score_of_the_largest_map_is_quantised() -> None:
    """Alone among the score layers; the labels stay those of the fp32 file."""
    whole = load_fp32(exported(replace(SMALL, variant="4s", pool2_channels=0)).path)
    assert "score_pool2" in whole.layers
    assert not {"score_fr", "score_pool3.3", "score_pool4.3"} & set(whole.layers)
    images = [street(64, 96, seed=seed) for seed in range(4)]
    proto = Quantizer(whole, images).quantize(["score_pool2"])
    feeds = whole.contract.feeds(images[0][None])
    labels, wanted = (simulate(each).run(["label_map"], feeds)[0] for each in (proto, whole.proto))
    assert (labels == wanted).mean() > 0.98


def test_reduced_range_is_seven_bits(model: Path) -> None:
    quantizer = Quantizer(load_fp32(model), [street(40, 50)])
    for reduced, limit in ((False, 127), (True, 64)):
        graph = quantizer.quantize(LAYERS, reduce_range=reduced).graph
        weights = [numpy_helper.to_array(t) for t in graph.initializer if len(t.dims) == 4]
        largest = max(int(np.abs(w.astype(int)).max()) for w in weights if w.dtype == np.int8)
        assert limit - 1 <= largest <= limit


def test_layers_are_left_in_float_on_request(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize([model, "--calibrate", images, "--keep-float", "conv1_2",
                     "--min-agreement", "0.5"]) == 0  # fmt: skip
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["conv1_1", "int8"] in [[r[0], r[-1]] for r in rows]
    assert ["conv1_2", "float"] in [[r[0], r[-1]] for r in rows]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min-agreement", "1"], "lower --min-agreement"),
        (["--keep-float", "conv9"], "'conv9': choose from conv1_1, conv1_2"),
        (["--keep-float", *LAYERS], "every layer is left in float"),
        (["--score", "val"], "--data-root"),
    ],
)
def test_what_cannot_be_is_said(
    model: Path, images: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize([model, "--calibrate", images, *words]) == 1
    assert message in capsys.readouterr().err
    assert not model.with_name("model.int8.onnx").exists()


def test_bad_files_are_refused(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "noise.onnx").write_bytes(b"no model")
    bare = write(tmp_path / "bare.onnx", network(), with_contract=False)
    assert quantize([model, "--calibrate", images, "--min-agreement", "0.5"]) == 0
    done = model.with_name("model.int8.onnx")
    refusals: list[tuple[list[str | Path], str]] = [
        ([model, "--calibrate", empty], "holds no image"),
        ([model, "--calibrate", tmp_path / "nowhere"], "there is no folder"),
        ([tmp_path / "none.onnx", "--calibrate", images], "there is no file"),
        ([tmp_path / "noise.onnx", "--calibrate", images], "cannot be read"),
        ([bare, "--calibrate", images, "--out", tmp_path / "o.onnx"], "has no contract"),
        ([done, "--calibrate", images, "--out", tmp_path / "o.onnx"], "quantised already"),
        ([model, "--calibrate", images], "--overwrite"),
    ]
    for words, message in refusals:
        assert quantize(words) == 1
        assert message in capsys.readouterr().err


def test_winograd_is_a_matter_of_export(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize([model, "--calibrate", images, "--winograd", "conv1_2"]) == 1
    assert "--winograd is for `fcn export` now" in capsys.readouterr().err
    assert not model.with_name("model.int8.onnx").exists()
