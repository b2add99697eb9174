"""Networks of any form are served as their own reference pipeline would."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch.nn import functional

import cli.adopt
from cli.main import main
from model.contract import ContractError
from model.export.adopt import AdoptError, AdoptOptions, AdoptReport, open_network
from model.export.adopt.file import MIN_AGREEMENT
from model.export.adopt.preprocessing import PRESETS, preprocess
from model.export.adopt.reference import bilinear, fit, nearest
from model.preprocessing import Preprocessing
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.types import Instance
from tests.foreign_graphs import attention, dilated, plain
from training.adopt import adopt_file
from training.evaluation.onnx_predictor import OnnxPredictor

UNIT = AdoptOptions(PRESETS["unit"])


def served(report: AdoptReport) -> Instance:
    return open_onnx_runtime(Path(report.path), provider="cpu", threads=1).instances[0]


def class_list(folder: Path, count: int) -> Path:
    path = folder / "classes.yaml"
    lines = ["name: drawn", "licence: CC0-1.0", "source: https://example.org", "classes:"]
    lines += [f"  - {{name: class {i}, color: [{i}, {2 * i}, 0]}}" for i in range(count)]
    path.write_text("\n".join(lines))
    return path


def adopted(
    folder: Path, network: Path, classes: int = 4, options: AdoptOptions = UNIT, **more: Any
) -> AdoptReport:
    report = adopt_file(
        network, folder / "models", "net", class_list(folder, classes), options, **more
    )
    assert max(row.classes for row in report.compared) > 1, "one class everywhere tells nothing"
    return report


FLOAT16, UINT8 = TensorProto.FLOAT16, TensorProto.UINT8
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # name: how the network is, what the user says, what is found
    "NCHW": ({}, {}, {"kind": "scores", "size": None, "multiple_of_px": 1, "min_side_px": 1}),
    "NHWC in": ({"dims": ("N", "H", "W", 3)}, {}, {"kind": "scores"}),
    "NHWC out": ({"channels_last": True}, {}, {"kind": "scores"}),
    "caffe": ({}, {"preprocessing": PRESETS["caffe"]}, {}),
    "imagenet": ({}, {"preprocessing": PRESETS["imagenet"]}, {}),
    "stride": ({"stride": 4}, {}, {"multiple_of_px": 1, "context_px": None}),
    "aligned": ({"stride": 4}, {"align_corners": True}, {}),
    "stride, multiple": ({"stride": 4}, {"multiple_of_px": 8}, {"multiple_of_px": 8}),
    "pool": ({"pool": 4}, {}, {"multiple_of_px": 4}),
    "fp16": ({"dtype": FLOAT16, "stride": 2}, {}, {"precision": "fp16"}),
    "bytes": ({"dtype": UINT8}, {"preprocessing": PRESETS["none"]}, {}),
    "bytes, fixed": (
        {"dtype": UINT8, "dims": (1, 40, 56, 3)},
        {"preprocessing": Preprocessing(color_order="BGR")},
        {"size": (40, 56)},
    ),
    "labels": ({"labels": "flat"}, {}, {"kind": "label_map"}),
    "labels, kept": ({"labels": "kept", "stride": 2}, {}, {"kind": "label_map"}),
    "softmax": ({"end": "Softmax"}, {}, {"kind": "scores"}),
    "score": ({"classes": 1}, {"threshold": 0.1}, {"kind": "score"}),
    "sigmoid": ({"classes": 1, "end": "Sigmoid", "stride": 2}, {}, {"kind": "score"}),
    "fixed": (
        {"dims": (1, 3, 48, 80), "stride": 4},
        {},
        {"size": (48, 80), "one_at_a_time": True, "min_side_px": 1},
    ),
    "fixed, as OpenCV": ({"dims": ("N", 3, 48, 80)}, {"antialias": False}, {"size": (48, 80)}),
    "batch fixed": ({"dims": (1, 3, "H", "W")}, {}, {"one_at_a_time": True, "size": None}),
    "batch of one inside": ({"batch_of_one": True}, {}, {"one_at_a_time": True}),
    "size chosen": ({"dims": ("N", 3, 48, "W")}, {"size": (48, 64)}, {"size": (48, 64)}),
    "opset 11": ({"opset": 11, "stride": 2}, {}, {}),
    "opset 11, fixed": ({"opset": 11, "dims": (1, 3, 48, 80)}, {}, {"size": (48, 80)}),
    "opset 9": ({"opset": 9, "stride": 2}, {}, {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    network, said, found = FORMS[form]
    classes = {"score": 2, "sigmoid": 2}.get(form, 4)
    path = plain(tmp_path / "net.onnx", **{"classes": 4, **network})
    options = AdoptOptions(**{"preprocessing": PRESETS["unit"], **said})
    logits = "labels" not in network
    report = adopted(tmp_path, path, classes, options, logits=logits)
    assert report.label_agreement >= 0.999
    if logits:
        # A resized value that is rounded to a byte may fall to either side.
        tolerance = 5e-3 if form in ("fp16", "bytes, fixed") else 1e-4
        assert report.largest_difference is not None
        assert report.largest_difference < tolerance
    assert {name: getattr(report, name) for name in found} == found
    side = 64 if report.size is None else 51
    labels = served(report).run(np.zeros((3, side, side + 8, 3), np.uint8))
    assert labels.shape == (3, side, side + 8)


@pytest.mark.parametrize("make", [dilated, attention])
@pytest.mark.parametrize("dims", [("N", 3, "H", "W"), (1, 3, 64, 96)], ids=["any", "fixed"])
def test_structures(make: Any, dims: Any, tmp_path: Path) -> None:
    report = adopted(tmp_path, make(tmp_path / "net.onnx", dims=dims), 5, logits=True)
    assert report.label_agreement >= 0.999
    assert report.context_px is None


def test_choices_count(tmp_path: Path) -> None:
    """Each of them changes labels: none is silently left out."""
    network = plain(tmp_path / "net.onnx", stride=4)
    image = np.random.default_rng(3).integers(0, 256, (1, 60, 84, 3), np.uint8)
    answers = []
    for options in (
        UNIT,
        AdoptOptions(PRESETS["unit"], align_corners=True),
        AdoptOptions(Preprocessing(scale=1 / 255, color_order="BGR")),
        AdoptOptions(Preprocessing(mean=(0.5, 0.4, 0.3), scale=1 / 255)),
        AdoptOptions(Preprocessing(std=(0.5, 0.2, 0.1), scale=1 / 255)),
        AdoptOptions(PRESETS["unit"], size=(32, 48)),
        AdoptOptions(PRESETS["unit"], size=(32, 48), antialias=False),
    ):
        report = adopted(tmp_path, network, options=options)
        answers.append(served(report).run(image))
    assert len({labels.tobytes() for labels in answers}) == len(answers)


def test_context(tmp_path: Path) -> None:
    # Two convolutions of 3x3.
    assert adopted(tmp_path, plain(tmp_path / "a.onnx")).context_px == 2
    strided = adopted(
        tmp_path,
        plain(tmp_path / "b.onnx", stride=4),
        options=AdoptOptions(UNIT.preprocessing, None, 4),
    )
    assert strided.context_px and strided.context_px % 4 == 0
    one = plain(tmp_path / "one.onnx", 1, end="Sigmoid")
    assert adopted(tmp_path, one, 2, logits=True).context_px == 2
    placed = plain(tmp_path / "c.onnx", coordinates=True)
    assert adopted(tmp_path, placed).context_px is None


def test_logits_are_the_probabilities(tmp_path: Path) -> None:
    """Their softmax is what the network ends in, and their arg max the labels."""
    for end, classes, threshold in (("Softmax", 4, None), ("Sigmoid", 1, 0.5), ("Sigmoid", 1, 0.3)):
        network = plain(tmp_path / "net.onnx", classes, end=end)
        options = AdoptOptions(PRESETS["unit"], threshold=threshold)
        report = adopted(tmp_path, network, max(2, classes), options, logits=True)
        image = np.random.default_rng(3).integers(0, 256, (1, 33, 47, 3), np.uint8)
        file = _session(report.path)
        labels, logits = file.run(["label_map", "logits"], {"image": image})
        assert (logits.argmax(axis=1) == labels).all()
        values = (image.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)
        (wanted,) = _session(str(network)).run(None, {"image": values})
        given = torch.from_numpy(logits).softmax(1).numpy()
        if threshold != 0.3:
            np.testing.assert_allclose(given[:, -1], wanted[:, -1], atol=1e-5)


def _session(path: str) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_reference_is_torchs_and_pillows() -> None:
    planes = np.random.default_rng(0).normal(size=(3, 13, 29)).astype(np.float32)
    batch = torch.from_numpy(planes)[None]
    for size in ((50, 61), (7, 100), (1, 1)):
        for aligned in (False, True):
            wanted = functional.interpolate(batch, size, mode="bilinear", align_corners=aligned)
            np.testing.assert_allclose(bilinear(planes, size, aligned), wanted[0], atol=1e-5)
        cells = functional.interpolate(batch, size, mode="nearest-exact")[0, 0].numpy()
        assert (nearest(planes[0], size) == cells).mean() > 0.9  # of two as near either will do
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    small = fit(image.astype(np.float32), (11, 20), antialias=True)
    pillow = np.asarray(Image.fromarray(image).resize((20, 11), Image.Resampling.BILINEAR))
    assert np.abs(small - pillow).max() <= 1  # which rounds, twice


def test_presets() -> None:
    white = np.full((1, 1, 1, 3), 255, np.float32)
    red = white * np.array([1, 0, 0], np.float32)
    assert preprocess(PRESETS["imagenet"], white).ravel() == pytest.approx(
        [2.2489, 2.4286, 2.64], abs=1e-4
    )
    assert preprocess(PRESETS["unit"], red).ravel().tolist() == [1, 0, 0]
    assert preprocess(PRESETS["none"], red).ravel().tolist() == [255, 0, 0]
    assert preprocess(PRESETS["caffe"], red).ravel() == pytest.approx(
        [-104.00699, -116.66877, 132.32109], abs=1e-4
    )


def test_repository_and_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = plain(tmp_path / "from-abroad.onnx", auxiliary=True)
    words = ["adopt", str(network), "--name", "net", "--classes", str(class_list(tmp_path, 4))]
    words += ["--repository", str(tmp_path / "models"), "--output", "out", "--logits"]
    numbers = ["--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.2", "0.2", "--scale", "0.00392"]
    assert main([*words, *numbers, "--color-order", "BGR", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == str(tmp_path / "models/net/1/model.onnx")
    assert report["label_agreement"] >= 0.999 and len(report["compared"]) == 5
    assert main([*words, "--normalise", "unit"]) == 0
    table = capsys.readouterr().out
    assert "models/net/2/model.onnx" in table and "100.0000%" in table
    assert main([*words, "--normalise", "unit", "--version", "2"]) == 1
    assert "say --overwrite" in capsys.readouterr().err
    card = (tmp_path / "models/net/README.md").read_text()
    assert "from-abroad.onnx" in card and "**CC0-1.0**" in card and "| 100.0000% |" in card
    contract = open_onnx_runtime(
        tmp_path / "models/net/2/model.onnx", provider="cpu", threads=1
    ).contract
    assert contract.architecture == "from-abroad" and contract.training_data.licence == "CC0-1.0"
    # What only the other output needs is left out.
    weights = [t.name for t in onnx.load(tmp_path / "models/net/2/model.onnx").graph.initializer]
    assert sum(name.startswith("network/") for name in weights) == 2


def test_disagreement_writes_nothing(tmp_path: Path) -> None:
    first = adopted(tmp_path, plain(tmp_path / "net.onnx"))
    before = Path(first.path).read_bytes()
    mixing = plain(tmp_path / "mixing.onnx", mix=True)
    with pytest.raises(AdoptError, match=r"agrees with the network on .*nothing was written"):
        adopted(tmp_path, mixing, version=1, overwrite=True)
    assert Path(first.path).read_bytes() == before
    assert [file.name for file in Path(first.path).parent.iterdir()] == ["model.onnx"]
    with pytest.raises(AdoptError):
        adopted(tmp_path, mixing)
    # A version folder without a model would keep the server from starting.
    assert {file.name for file in (tmp_path / "models/net").iterdir()} == {"1", "README.md"}


@pytest.mark.parametrize(
    ("network", "said", "message"),
    [
        ({"auxiliary": True}, {}, r"2 outputs: say --output with one of 'out' float.*'aux'"),
        ({}, {"output": "logits"}, r"no output 'logits': the network has 'out'"),
        ({}, {"classes": 7}, r"scores of 4 classes, and the class list has 7"),
        ({"labels": "flat"}, {"classes": 2}, r"classes 0 to 3 and the class list has 2"),
        ({"classes": 1}, {"classes": 3}, r"with one score there are two classes"),
        ({"dims": (4, 3, 48, 80)}, {}, r"takes exactly 4 images at once"),
        ({"dims": (1, 1, 48, 80)}, {}, r"\[1,1,48,80\], without 3 channels"),
        ({"dims": ("N", "C", "H", "W")}, {}, r"say --input-layout NCHW or NHWC"),
        ({"dims": ("N", 3, 48, "W")}, {}, r"images of 48xany .*say --size"),
        ({"dims": (1, 3, 48, 80)}, {"size": (64, 64)}, r"of 48x80 .*not 64x64"),
        ({"dims": (1, 3, 48, 80)}, {"multiple_of_px": 8}, r"--multiple-of has no meaning"),
        ({"dtype": UINT8}, {}, r"say --preprocessing none"),
        ({"dtype": TensorProto.BFLOAT16}, {}, r"no image: export .* with one of float"),
        ({"pool": 3}, {}, r"does not run on images whose sides are multiples of 128 or less"),
        ({}, {"threshold": 0.5}, r"a threshold is for networks with a single score"),
        ({"classes": 1, "end": "Sigmoid"}, {"threshold": 3.0, "classes": 2}, r"is not in 0"),
        ({"labels": "flat"}, {"logits": True}, r"there are no logits to give"),
        ({}, {"output_is": "labels"}, r"is no label map"),
    ],
)
def test_refused(
    network: dict[str, Any], said: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = plain(tmp_path / "net.onnx", **network)
    more = {name: said[name] for name in ("output", "logits") if name in said}
    options = {n: v for n, v in said.items() if n not in (*more, "classes")}
    classes = class_list(tmp_path, said.get("classes", 4))
    with pytest.raises(AdoptError, match=message):
        adopt_file(
            path,
            tmp_path / "models",
            "net",
            classes,
            AdoptOptions(**{"preprocessing": PRESETS["unit"], **options}),
            **more,
        )
    assert not list(tmp_path.glob("models/**/*"))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(AdoptError, match="there is no file"):
        open_network(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(AdoptError, match="cannot be read as an ONNX model"):
        open_network(tmp_path / "text.onnx")


def test_opsets_and_inputs(tmp_path: Path) -> None:
    path = plain(tmp_path / "net.onnx")
    proto = onnx.load(str(path))
    proto.opset_import[0].version = 99
    onnx.save(proto, str(path))
    with pytest.raises(AdoptError, match="opset 99"):
        open_network(path)
    proto.opset_import[0].version = 18
    extra = helper.make_tensor_value_info("depth", TensorProto.FLOAT, ["N", 1, "H", "W"])
    proto.graph.input.append(extra)
    onnx.save(proto, str(path))
    with pytest.raises(AdoptError, match=r"has 2 inputs \('image' float.*'depth' float"):
        open_network(path)


def test_old_opsets(tmp_path: Path) -> None:
    """That onnx has no way to bring up to date."""
    path = plain(tmp_path / "net.onnx", opset=1)
    node = helper.make_node("Split", ["image"], ["part", "rest"], axis=0)
    value = helper.make_tensor_value_info("part", TensorProto.FLOAT, ["n", 3, "H", "W"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, "H", "W"])
    graph = helper.make_graph([node], "old", [image], [value])
    opsets = [helper.make_opsetid("", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=4), str(path))
    with pytest.raises(AdoptError, match=r"opset 1, 11 is needed, .* export .* at opset 18$"):
        open_network(path)


def test_operators_nobody_has(tmp_path: Path) -> None:
    path = plain(tmp_path / "net.onnx")
    proto = onnx.load(str(path))
    proto.graph.node[0].domain = "elsewhere"
    proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    onnx.save(proto, str(path))
    with pytest.raises(AdoptError, match="does not load in ONNX Runtime: .*elsewhere"):
        adopted(tmp_path, path)


def test_names(tmp_path: Path) -> None:
    network, classes = plain(tmp_path / "net.onnx"), class_list(tmp_path, 4)
    with pytest.raises(ContractError, match="use letters"):
        adopt_file(network, tmp_path / "models", "a/b", classes, UNIT)
    with pytest.raises(AdoptError, match="has 72 channels as NHWC"):
        wide = plain(tmp_path / "wide.onnx", dims=(1, 3, 48, 72))
        adopt_file(wide, tmp_path / "models", "net", classes, UNIT, input_layout="NHWC")
    assert not list(tmp_path.glob("models/*"))


def test_presets_of_the_command() -> None:
    parser = argparse.ArgumentParser()
    cli.adopt.configure(parser)
    (action,) = (a for a in parser._actions if a.dest == "preprocessing")
    assert action.choices is not None and set(action.choices) == set(PRESETS)
    assert parser.get_default("min_agreement") == MIN_AGREEMENT


def test_evaluated_at_any_size(tmp_path: Path) -> None:
    """`fcn evaluate` pads as the server does where sides must be multiples."""
    report = adopted(tmp_path, plain(tmp_path / "net.onnx", pool=4))
    image = np.random.default_rng(3).integers(0, 256, (33, 47, 3), np.uint8)
    labels = OnnxPredictor(Path(report.path), threads=1)(image)
    padded = np.pad(image, ((0, 3), (0, 1), (0, 0)))
    wanted = served(report).run(padded[None])
    assert (labels == wanted[0, :33, :47]).all()


def test_infinite_scores(tmp_path: Path) -> None:
    path = plain(tmp_path / "net.onnx")
    proto = onnx.load(str(path))
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight * np.nan, "c0"))
    onnx.save(proto, str(path))
    with pytest.raises(AdoptError, match="infinite or none: check mean, std and scale"):
        adopted(tmp_path, path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "how does the network want its pixels"),
        (["--normalise", "unit", "--scale", "2"], "say one of the two"),
        (["--std", "0", "1", "1"], "above 0"),
        (["--mean", "nan", "1", "1"], "finite"),
    ],
)
def test_pixels_must_be_said(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = plain(tmp_path / "net.onnx")
    classes = str(class_list(tmp_path, 4))
    assert main(["adopt", str(network), "--name", "net", "--classes", classes, *words]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
