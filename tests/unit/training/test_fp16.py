"""`fcn quantize --to fp16`: a file that rounds to 11 bits what can be, and a report of the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from cli.main import main
from model.build import NetworkSpec
from model.export.fp16 import LARGEST, Fp16Converter
from model.export.fp32_model import load_fp32, simulate
from model.export.quantize import Quantizer
from tests.drawing import street
from tests.exports import exported
from tests.unit.training.small_network import (
    LAYERS,
    network,
    read_contract,
    write,
)


def halve(words: Sequence[str | Path]) -> int:
    return main(["quantize", "--to", "fp16", *map(str, words)])


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def test_writes_a_file_beside_the_model(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert halve([model, "--calibrate", images, "--json"]) == 0
    out = capsys.readouterr().out
    report = json.loads(out[out.index("{") :])
    target = model.with_name("model.fp16.onnx")
    assert report["path"] == str(target)
    assert report["agreement"] >= 0.99
    assert [(row["layer"], row["half"]) for row in report["layers"]] == [(n, True) for n in LAYERS]
    assert all(0 < row["largest"] < LARGEST / 4 for row in report["layers"])
    assert read_contract(target).precision == "fp16"
    assert read_contract(target).classes == read_contract(model).classes
    image = street(33, 47)[None]
    labels, wanted = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            ["label_map"], {"image": image}
        )[0]
        for path in (target, model)
    )
    assert labels.dtype == np.uint8
    assert (labels == wanted).mean() > 0.99


def test_pixels_and_scores_stay_in_fp32(model: Path) -> None:
    proto = Fp16Converter(load_fp32(model), [street(40, 50)]).convert()
    types = element_types(proto)
    half = {name for name, kind in types.items() if kind == TensorProto.FLOAT16}
    assert half == {"x0_half", "c1", "x1", "c2", "x2", "conv1_1.weight", "conv1_2.weight"}
    assert types["image"] == types["label_map"] == TensorProto.UINT8
    assert types["x0"] == types["scores"] == types["score.weight"] == TensorProto.FLOAT
    assert [n.op_type for n in proto.graph.node].count("Cast") == 4  # in, to half, back, labels


def clipped(scale: float) -> onnx.ModelProto:
    """The activations end at 6, in constants that both share."""
    proto = network(scale=scale)
    for name, value in (("zero", 0.0), ("six", 6.0)):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    for node in proto.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Clip"
            node.input.extend(["zero", "six"])
    return proto


def test_types_that_a_file_declares_of_its_tensors_are_those_of_fp32(tmp_path: Path) -> None:
    """Exports and files of other programs may hold them: they say nothing of the fp16 file."""
    proto = network()
    proto.graph.value_info.append(
        onnx.helper.make_tensor_value_info("x1", TensorProto.FLOAT, ["N", 8, "H", "W"])
    )
    path = write(tmp_path / "declared.onnx", proto)
    simulated = Fp16Converter(load_fp32(path), [street(40, 50)]).simulated()
    simulate(simulated).run(None, {"image": street(8, 9)[None]})


@pytest.mark.parametrize(
    ("backbone", "pool2_channels"), [("mobilenet_v1", 0), ("efficientnet_lite0", 4)]
)
def test_fcn_4s_keeps_its_labels(backbone: str, pool2_channels: int) -> None:
    spec = NetworkSpec(
        backbone, "4s", fc6_channels=8, skip_channels=4, pool2_channels=pool2_channels, width=1 / 8
    )
    whole = load_fp32(exported(spec).path)
    images = [street(64, 96, seed=seed) for seed in range(4)]
    feeds = whole.contract.feeds(images[0][None])
    wanted = simulate(whole.proto).run(["label_map"], feeds)[0]
    int8 = Quantizer(whole, images).quantize(list(whole.layers))
    converter = Fp16Converter(whole, images)
    assert all(converter.largest(layer) > 0 for layer in whole.layers)
    assert ("score_pool2" in set(whole.layers) - converter.fp16_layers()) == (not pool2_channels)
    for proto, share in ((converter.simulated(), 0.99), (int8, 0.9)):
        assert (simulate(proto).run(["label_map"], feeds)[0] == wanted).mean() > share


def test_a_layer_whose_values_are_too_large_stays_in_fp32(tmp_path: Path) -> None:
    """They reach several units in the first layer; times 20000 they leave fp16's range."""
    path = write(tmp_path / "large.onnx", clipped(scale=20_000.0))
    converter = Fp16Converter(load_fp32(path), [street(40, 50)])
    assert converter.largest("conv1_1") > LARGEST
    assert converter.fp16_layers() == {"conv1_2"}
    halved = converter.convert()
    types = element_types(halved)
    assert types["c1"] == types["x1"] == types["conv1_1.weight"] == TensorProto.FLOAT
    assert types["c2"] == types["conv1_2.weight"] == TensorProto.FLOAT16
    # A constant that both need is there twice.
    assert types["six"] == TensorProto.FLOAT
    assert types["six_half"] == TensorProto.FLOAT16
    simulate(halved).run(None, {"image": street(8, 9)[None]})


def test_without_a_layer_in_range_nothing_is_written(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing ends the large values of the first layer before the second one."""
    path = write(tmp_path / "large.onnx", network(scale=20_000.0))
    assert halve([path, "--calibrate", images]) == 1
    assert "every layer is left in fp32" in capsys.readouterr().err
    assert not path.with_name("model.fp16.onnx").exists()


def test_headroom_decides(model: Path) -> None:
    float_model = load_fp32(model)
    largest = Fp16Converter(float_model, [street(40, 50)]).largest("conv1_2")
    for headroom, fits in ((LARGEST / largest * 0.99, True), (LARGEST / largest * 1.01, False)):
        converter = Fp16Converter(float_model, [street(40, 50)], headroom)
        assert ("conv1_2" in converter.fp16_layers()) is fits


def test_the_simulation_rounds_what_a_gpu_rounds(model: Path) -> None:
    """Against numpy's own fp16, layer by layer, with sums in fp32 as tensor cores make them."""
    float_model = load_fp32(model)
    converter = Fp16Converter(float_model, [street(40, 50)])
    proto = converter.simulated()
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info("x2"))
    image = street(20, 24)[None]
    (got,) = simulate(proto).run(["x2"], {"image": image})
    weights = {t.name: numpy_helper.to_array(t) for t in float_model.proto.graph.initializer}

    def rounded(values: torch.Tensor) -> torch.Tensor:
        return values.half().float()

    x = rounded((torch.from_numpy(image).permute(0, 3, 1, 2).float() - 128) / 128)
    for name in LAYERS:
        weight = rounded(torch.from_numpy(weights[f"{name}.weight"].copy()))
        x = rounded(torch.nn.functional.conv2d(x, weight, padding=1)).relu()
    wanted = x.numpy()
    # Sums in another order may fall to the other side of a rounding: a unit in the last place.
    np.testing.assert_allclose(got, wanted, rtol=2**-10, atol=1e-6)
    assert (got == wanted).mean() > 0.98
    exact = simulate(onnx.load(str(model))).get_outputs()
    assert [output.name for output in exact] == ["label_map"]
    assert (got.astype(np.float16).astype(np.float32) == got).all()


def test_kept_layers_are_in_the_table(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert halve([model, "--calibrate", images, "--keep-float", "conv1_2"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["conv1_1", "fp16"] in [[r[0], r[-1]] for r in rows]
    assert ["conv1_2", "fp32"] in [[r[0], r[-1]] for r in rows]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min-agreement", "1", "--headroom", "1"], "lower --min-agreement"),
        (["--keep-float", "conv9"], "'conv9': choose from conv1_1, conv1_2"),
        (["--keep-float", *LAYERS], "every layer is left in fp32"),
        (["--headroom", "1000"], None),
        (["--method", "entropy"], "--method is for --to int8"),
        (["--reduce-range"], "--reduce-range is for --to int8"),
        (["--to", "int8", "--headroom", "2"], "--headroom is for --to fp16"),
        (["--score", "val"], "--data-root"),
    ],
)
def test_what_cannot_be_is_said(
    model: Path,
    images: Path,
    words: list[str],
    message: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = halve([model, "--calibrate", images, *words])
    if message is None:
        assert code == 0
        return
    assert code == 1
    assert message in capsys.readouterr().err
    assert not model.with_name("model.fp16.onnx").exists()


def test_no_headroom_is_a_usage_error(model: Path, images: Path) -> None:
    with pytest.raises(SystemExit):
        halve([model, "--calibrate", images, "--headroom", "0.5"])


def test_a_second_file_is_written_only_on_request(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert halve([model, "--calibrate", images]) == 0
    assert halve([model, "--calibrate", images]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert halve([model, "--calibrate", images, "--overwrite"]) == 0
    done = model.with_name("model.fp16.onnx")
    assert halve([done, "--calibrate", images, "--out", model.with_name("again.onnx")]) == 1
    assert "give the fp32 file" in capsys.readouterr().err
