"""`fcn import-weights`: start weights for a run, and a checkpoint of a released FCN."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cli.main import main
from model.fcn import Variant
from model.upsample import bilinear_kernel
from model.weights.start import read_start_weights
from tests import caffemodel
from tests.unit.training.recipes import MakeConfig
from tests.vgg_classifier import (
    FC,
    NARROW,
    WIDTH,
    Classifier,
    caffe_arrays,
    caffe_fcn,
    write_keras_npz,
    write_plain_npz,
    write_pth,
)
from training.checkpoint import load_checkpoint
from training.config import ConfigError
from training.datasets.folder import load_info
from training.import_weights import VOC_CLASSES
from training.publish import publish
from training.train import Trainer

VOC = load_info(VOC_CLASSES)

Capture = pytest.CaptureFixture[str]
CLASSES = 21
LAST = {"32s": ("upscore", 32), "16s": ("upscore16", 16), "8s": ("upscore8", 8)}


def fcn_blobs(variant: Variant, *, at_once: bool = False) -> dict[str, list[np.ndarray]]:
    """The layers of one of the authors' nets, narrow, as its net.py names them."""
    rng = np.random.default_rng(0)
    blobs = caffe_fcn()

    def score(name: str, inputs: int) -> None:
        weight = rng.normal(size=(CLASSES, inputs, 1, 1)).astype(np.float32)
        blobs[name] = [weight, rng.normal(size=CLASSES).astype(np.float32)]

    def upsample(name: str, factor: int) -> None:
        kernel = bilinear_kernel(2 * factor).numpy()
        blobs[name] = [np.multiply.outer(np.eye(CLASSES), kernel).astype(np.float32)]

    score("score_fr", FC)
    if variant != "32s":
        upsample("upscore2", 2)
        score("score_pool4", NARROW[3])
    if variant == "8s":
        upsample("upscore_pool4", 2)
        score("score_pool3", NARROW[2])
    upsample(*LAST[variant])
    if at_once:
        blobs["scale_pool4"] = [np.full(NARROW[3], 0.01, np.float32)]
        blobs["scale_pool3"] = [np.full(NARROW[2], 0.0001, np.float32)]
    return blobs


def write_fcn(path: Path, blobs: dict[str, list[np.ndarray]]) -> Path:
    path.write_bytes(caffemodel.net(blobs))
    return path


def command(file: Path, out: Path, *words: str) -> int:
    told = ["--network", "vgg16", "--width", str(WIDTH), "-o", str(out), *words]
    return main(["import-weights", str(file), *told])


def failure(capsys: Capture, file: Path, out: Path, *words: str) -> str:
    assert command(file, out, *words) == 1
    assert not out.exists()
    error = capsys.readouterr().err
    assert error.startswith("fcn: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("name", "write", "words", "preprocessing"),
    [
        ("a.pth", write_pth, [], "torchvision"),
        ("a.pth", write_pth, ["--preprocessing", "caffe"], "caffe"),
        ("a.npz", write_keras_npz, [], "caffe"),
        ("a.npz", write_plain_npz, ["--preprocessing", "torchvision"], "torchvision"),
    ],
)
def test_start_weights_start_a_run(
    name: str,
    write: Callable[[Path, Classifier], None],
    words: list[str],
    preprocessing: str,
    tmp_path: Path,
    make_config: MakeConfig,
    capsys: Capture,
) -> None:
    classifier = Classifier()
    write(tmp_path / name, classifier)
    out = tmp_path / "start.npz"
    assert command(tmp_path / name, out, *words) == 0
    said = capsys.readouterr().out
    assert "fc6      reshaped" in said and "fc8      dropped" in said
    assert f"weights for {preprocessing} preprocessing" in said
    config = make_config(
        network={"backbone": "vgg16", "preprocessing": preprocessing, "width": WIDTH},
        init__imagenet=str(out),
        loss__class_weight_offset=None,
    )
    trainer = Trainer(config, tmp_path / "run", resume=False)
    state = trainer.network.state_dict()
    for layer, (weight, bias) in caffe_arrays(classifier).items():
        if layer != "fc8":
            got = state[f"backbone.{layer}.weight"]
            assert np.array_equal(got.numpy(), weight.reshape(got.shape))
            assert np.array_equal(state[f"backbone.{layer}.bias"].numpy(), bias)


def test_convolutions_alone_start_a_run_whose_fc6_is_new(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    classifier = Classifier()
    write_plain_npz(tmp_path / "a.npz", classifier)
    with np.load(tmp_path / "a.npz") as whole:
        convolutions = {name: whole[name] for name in whole.files if name.startswith("conv")}
    np.savez(tmp_path / "a.npz", allow_pickle=False, **convolutions)
    out = tmp_path / "start.npz"
    assert command(tmp_path / "a.npz", out, "--preprocessing", "caffe") == 0
    network = {"backbone": "vgg16", "width": WIDTH}

    def trainer(**more: int) -> Trainer:
        changes: dict[str, Any] = {"network": network | more, "init__imagenet": str(out)}
        return Trainer(make_config(**changes), tmp_path / "run", resume=False, run_log=None)

    state = trainer(fc6_channels=5).network.state_dict()
    weight, _bias = caffe_arrays(classifier)["conv5_3"]
    assert np.array_equal(state["backbone.conv5_3.weight"].numpy(), weight)
    with pytest.raises(ConfigError, match="does not fit the network: fc6: missing"):
        trainer()


def test_a_run_with_other_pixels_is_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    write_pth(tmp_path / "a.pth", Classifier())
    assert command(tmp_path / "a.pth", tmp_path / "start.npz") == 0
    config = make_config(
        network={"backbone": "vgg16", "preprocessing": "caffe", "width": WIDTH},
        init__imagenet=str(tmp_path / "start.npz"),
    )
    with pytest.raises(ConfigError, match=r"set network\.preprocessing=torchvision"):
        Trainer(config, tmp_path / "run", resume=False)


def test_an_fcn_gives_start_weights_too(tmp_path: Path) -> None:
    file = write_fcn(tmp_path / "fcn.caffemodel", fcn_blobs("8s"))
    assert command(file, tmp_path / "start.npz") == 0
    layers = read_start_weights(tmp_path / "start.npz", network="vgg16", preprocessing="caffe")
    assert "score_fr" not in layers and layers["fc6"].weight.shape == (FC, NARROW[4], 7, 7)


def test_the_report_as_json(tmp_path: Path, capsys: Capture) -> None:
    write_pth(tmp_path / "a.pth", Classifier())
    assert command(tmp_path / "a.pth", tmp_path / "start.npz", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["sha256"]) == 64 and report["preprocessing"] == "torchvision"
    first = {"layer": "conv1_1", "action": "copied", "detail": "2x3x3x3"}
    assert report["layers"][0] == first


@pytest.mark.parametrize("variant", ["32s", "16s", "8s"])
def test_a_released_fcn_becomes_a_checkpoint(variant: Variant, tmp_path: Path) -> None:
    blobs = fcn_blobs(variant)
    file = write_fcn(tmp_path / "fcn.caffemodel", blobs)
    out = tmp_path / "fcn.pt"
    assert command(file, out, "--head", variant) == 0
    checkpoint = load_checkpoint(out)
    assert checkpoint.network.architecture == f"fcn{variant}-vgg16_0.03125-pad100"
    assert checkpoint.network.preprocessing == "caffe"
    assert checkpoint.network.upsampling == "fixed"
    assert checkpoint.dataset == VOC
    network = checkpoint.build_network()
    state = network.state_dict()
    for name, (weight, *_bias) in blobs.items():
        if not name.startswith("upscore"):
            path = name if name.startswith("score") else f"backbone.{name}"
            assert np.array_equal(state[f"{path}.weight"].numpy(), weight)


def test_scales_of_the_net_trained_at_once_are_folded(tmp_path: Path) -> None:
    """The scores of a pool times a constant, by a net that multiplies the pools itself."""
    file = write_fcn(tmp_path / "a.caffemodel", fcn_blobs("8s", at_once=True))
    assert command(file, tmp_path / "a.pt", "--head", "8s") == 0
    folded = load_checkpoint(tmp_path / "a.pt").build_network()
    plain_file = write_fcn(tmp_path / "b.caffemodel", fcn_blobs("8s"))
    assert command(plain_file, tmp_path / "b.pt", "--head", "8s") == 0
    plain = load_checkpoint(tmp_path / "b.pt").build_network()
    pool = torch.rand(1, NARROW[3], 2, 2)
    with torch.inference_mode():
        got, wanted = (
            folded.get_submodule("score_pool4")(pool),
            plain.get_submodule("score_pool4")(0.01 * pool),
        )
        torch.testing.assert_close(got, wanted)
        pool = torch.rand(1, NARROW[2], 2, 2)
        got, wanted = (
            folded.get_submodule("score_pool3")(pool),
            plain.get_submodule("score_pool3")(0.0001 * pool),
        )
        torch.testing.assert_close(got, wanted)


def test_learned_upsampling_is_taken_over(tmp_path: Path) -> None:
    blobs = fcn_blobs("8s")
    blobs["upscore2"][0] = blobs["upscore2"][0] + np.float32(0.1)
    file = write_fcn(tmp_path / "a.caffemodel", blobs)
    assert command(file, tmp_path / "a.pt", "--head", "8s") == 0
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.network.upsampling == "learned"
    weight = checkpoint.build_network().state_dict()["upscore2.weight"]
    assert np.array_equal(weight.numpy(), blobs["upscore2"][0])


@pytest.mark.usefixtures("quick_export")
def test_the_checkpoint_is_exported_with_a_card(tmp_path: Path) -> None:
    file = write_fcn(tmp_path / "fcn.caffemodel", fcn_blobs("32s"))
    words = ["--head", "32s", "--padding", "same", "--name", "voc"]
    assert command(file, tmp_path / "fcn.pt", *words) == 0
    path, _ = publish(tmp_path / "fcn.pt", tmp_path / "models")
    assert path == tmp_path / "models" / "voc" / "1" / "model.onnx"
    card = (tmp_path / "models" / "voc" / "README.md").read_text()
    assert "Imported from `fcn.caffemodel` (SHA-256 `" in card
    assert "iterations" not in card and "## Recipe" not in card


def test_the_checkpoint_is_evaluated(tmp_path: Path, capsys: Capture) -> None:
    """With every bias but that of `car` far below it, all pixels are cars."""
    blobs = fcn_blobs("8s")
    blobs["score_pool3"][1][:] = np.where(np.arange(CLASSES) == 7, 1e6, -1e6)
    file = write_fcn(tmp_path / "a.caffemodel", blobs)
    assert command(file, tmp_path / "a.pt", "--head", "8s") == 0
    folder = tmp_path / "data" / "test"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "images" / "a.png")
    target = np.full((20, 30), 7, np.uint8)
    target[:5] = 15
    Image.fromarray(target).save(folder / "labels" / "a.png")
    listed = [{"name": info.name, "color": list(info.color)} for info in VOC.classes]
    text = yaml.safe_dump({"name": "voc", "licence": "none", "classes": listed})
    (tmp_path / "data" / "classes.yaml").write_text(text)
    capsys.readouterr()
    words = ["evaluate", str(tmp_path / "a.pt"), "--data-root", str(tmp_path / "data"), "--json"]
    assert main(words) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["pixel_accuracy"] == 0.75 and scores["class_iu"]["car"] == 0.75


def test_other_classes(tmp_path: Path, capsys: Capture) -> None:
    entries = "".join(f"  - {{name: c{i}, color: [{i}, 0, 0]}}\n" for i in range(20))
    listed = tmp_path / "classes.yaml"
    listed.write_text(f"name: mine\nlicence: none\nclasses:\n{entries}")
    file = write_fcn(tmp_path / "a.caffemodel", fcn_blobs("32s"))
    words = ["--head", "32s", "--classes", str(listed)]
    error = failure(capsys, file, tmp_path / "a.pt", *words)
    assert "score_fr: mismatch, bias 21, want 20" in error
    listed.write_text(listed.read_text() + "  - {name: c20, color: [20, 0, 0]}\n")
    assert command(file, tmp_path / "a.pt", *words) == 0
    assert load_checkpoint(tmp_path / "a.pt").dataset.data.name == "mine"


def _drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda blobs: blobs.pop(name)


def _set(name: str, *arrays: np.ndarray) -> Callable[[dict[str, Any]], object]:
    return lambda blobs: blobs.update({name: list(arrays)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("score_pool4"), "score_pool4: missing"),
        (_drop("conv3_3"), "conv3_3: missing"),
        (_set("score_pool3", np.zeros((3, 6, 1, 1)), np.zeros(21)), "score_pool3: mismatch"),
        (_set("upscore8", np.zeros((21, 21, 16, 16))), "upscore8 is not bilinear"),
        (_set("upscore8", np.zeros((21, 21))), "upscore8 is not bilinear"),
        (_set("upscore2", np.zeros((21, 21, 3, 3))), "upscore2: mismatch"),
        (_set("scale_pool4", np.zeros(5)), "scale_pool4 has shape"),
    ],
)
def test_a_released_fcn_that_is_not_whole(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path, capsys: Capture
) -> None:
    blobs = fcn_blobs("8s")
    change(blobs)
    file = write_fcn(tmp_path / "a.caffemodel", blobs)
    error = failure(capsys, file, tmp_path / "a.pt", "--head", "8s")
    assert "a.caffemodel" in error and message in error


def test_a_file_of_another_variant(tmp_path: Path, capsys: Capture) -> None:
    file = write_fcn(tmp_path / "a.caffemodel", fcn_blobs("8s"))
    error = failure(capsys, file, tmp_path / "a.pt", "--head", "16s")
    assert "holds an FCN-8s (upscore8), not FCN-16s: say --head 8s" in error


def test_unknown_layers_are_named_and_left(tmp_path: Path, capsys: Capture) -> None:
    blobs = fcn_blobs("32s") | {"extra": [np.zeros((2, 2), np.float32)]}
    file = write_fcn(tmp_path / "a.caffemodel", blobs)
    assert command(file, tmp_path / "a.pt", "--head", "32s") == 0
    assert "extra     unknown   2x2" in capsys.readouterr().out


def test_a_plain_file_must_say_its_pixels(tmp_path: Path, capsys: Capture) -> None:
    write_plain_npz(tmp_path / "a.npz", Classifier())
    error = failure(capsys, tmp_path / "a.npz", tmp_path / "out.npz")
    assert "say --preprocessing caffe or torchvision" in error


def test_other_unusable_files(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.npz"
    assert "none.pth" in failure(capsys, tmp_path / "none.pth", out)
    (tmp_path / "cut.caffemodel").write_bytes(caffemodel.net(fcn_blobs("32s"))[:-9])
    assert "cut short" in failure(capsys, tmp_path / "cut.caffemodel", out)
    write_pth(tmp_path / "a.pth", Classifier())
    assert main(["import-weights", str(tmp_path / "a.pth"), "--network", "x", "-o", str(out)]) == 1
    assert "no names are known for 'x': want alexnet" in capsys.readouterr().err
    both = Classifier().state_dict()
    both["conv1_1.weight"] = both["features.0.weight"]
    torch.save(both, tmp_path / "twice.pth")
    assert "two of its layers are the same" in failure(capsys, tmp_path / "twice.pth", out)


def test_the_colours_of_voc() -> None:
    """Source: `VOClabelcolormap.m` of the VOC devkit, of which these are known by heart."""
    colors = {info.name: info.color for info in VOC.classes}
    assert len(colors) == 21
    assert colors["background"] == (0, 0, 0)
    assert colors["aeroplane"] == (128, 0, 0)
    assert colors["bicycle"] == (0, 128, 0)
    assert colors["car"] == (128, 128, 128)
    assert colors["cat"] == (64, 0, 0)
    assert colors["person"] == (192, 128, 128)
    assert colors["tv_monitor"] == (0, 64, 128)
    assert [info.id for info in VOC.classes] == list(range(21))
