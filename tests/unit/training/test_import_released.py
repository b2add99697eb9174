"""`fcn import-weights` for the FCNs that the paper's authors released, other than VOC's VGG16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.backbones.vgg16 import VGG16
from model.upsample import bilinear_kernel
from tests.other_classifiers import CAFFENET_FC, CaffeNet
from tests.unit.training.test_import_networks import (
    Blobs,
    Capture,
    caffe_file,
    command,
    failure,
    googlenet_blobs,
    random_blob,
)
from tests.vgg_classifier import FC, NARROW, Classifier, caffe_arrays
from training.checkpoint import load_checkpoint
from training.datasets.folder import load_info
from training.import_weights import RELEASED


def scores(blobs: Blobs, classes: int, inputs: dict[str, int], last: str, kernel: int) -> Blobs:
    """With the head of an FCN."""
    for name, channels in inputs.items():
        blobs[name] = [random_blob(classes, channels, 1, 1), random_blob(classes)]
    square = bilinear_kernel(kernel).numpy()
    blobs[last] = [np.multiply.outer(np.eye(classes), square).astype(np.float32)]
    return blobs


def vgg_blobs() -> Blobs:
    blobs = {name: list(arrays) for name, arrays in caffe_arrays(Classifier()).items()}
    del blobs["fc8"]
    blobs["fc6"][0] = blobs["fc6"][0].reshape(FC, -1, 7, 7)
    blobs["fc7"][0] = blobs["fc7"][0].reshape(FC, FC, 1, 1)
    return blobs


def alexnet_fcn_blobs(kernel: int = 63) -> Blobs:
    """fcn-alexnet-pascal."""
    blobs = CaffeNet().blobs()
    del blobs["fc8"]
    blobs["fc6"][0] = blobs["fc6"][0].reshape(CAFFENET_FC, -1, 6, 6)
    blobs["fc7"][0] = blobs["fc7"][0].reshape(CAFFENET_FC, CAFFENET_FC, 1, 1)
    return scores(blobs, 21, {"score_fr": CAFFENET_FC}, "upscore", kernel)


def test_the_released_fcn_alexnet(tmp_path: Path, capsys: Capture) -> None:
    blobs = alexnet_fcn_blobs()
    file = caffe_file(tmp_path / "fcn-alexnet-pascal.caffemodel", blobs)
    assert command("alexnet", file, tmp_path / "a.pt", "--head", "32s") == 0
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.network.architecture == "fcn32s-alexnet_0.03125-pad100"
    assert checkpoint.dataset == load_info(RELEASED[21][0])
    network = checkpoint.build_network().eval()
    assert np.array_equal(network.state_dict()["score_fr.weight"].numpy(), blobs["score_fr"][0])
    with torch.inference_mode():
        logits = network(torch.rand(1, 3, 33, 47) * 255)
    assert logits.shape == (1, 21, 33, 47) and float(logits.std()) > 0
    # The kernel is 63: one of 64 is another net's, half a pixel off.
    caffe_file(file, alexnet_fcn_blobs(64))
    assert "upsampling by 32, kernel 63" in failure(capsys, "alexnet", file, "--head", "32s")


def test_a_googlenet_with_a_head(tmp_path: Path) -> None:
    """The authors released none; one with their names for its layers is read."""
    blobs = scores(googlenet_blobs(), 21, {"score_fr": 64}, "upscore", 63)
    file = caffe_file(tmp_path / "a.caffemodel", blobs)
    assert command("googlenet", file, tmp_path / "a.pt", "--head", "32s") == 0
    state = load_checkpoint(tmp_path / "a.pt").build_network().state_dict()
    got = state["backbone.inception_4c.5x5.weight"].numpy()
    assert np.array_equal(got, blobs["inception_4c/5x5"][0])


HEADS = {
    "32s": ({"score_fr": FC}, "upscore", 64),
    "16s": ({"score_fr": FC, "score_pool4": NARROW[3]}, "upscore16", 32),
    "8s": ({"score_fr": FC, "score_pool4": NARROW[3], "score_pool3": NARROW[2]}, "upscore8", 16),
}


@pytest.mark.parametrize(
    ("classes", "head", "first", "last", "pixels", "mean"),
    [
        (40, "32s", "wall", "other_prop", "nyudv2", 92.318),
        (60, "32s", "background", "wood", "caffe", 122.67892),
        (60, "16s", "background", "wood", "caffe", 122.67892),
        (60, "8s", "background", "wood", "caffe", 122.67892),
    ],
)
def test_the_released_nets_of_other_data(
    classes: int, head: str, first: str, last: str, pixels: str, mean: float, tmp_path: Path
) -> None:
    """nyud-fcn32s-color and pascalcontext-fcn*: told by their number of classes."""
    blobs = scores(vgg_blobs(), classes, *HEADS[head])
    file = caffe_file(tmp_path / "a.caffemodel", blobs)
    assert command("vgg16", file, tmp_path / "a.pt", "--head", head) == 0
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    names = [info.name for info in checkpoint.dataset.classes]
    assert (len(names), names[0], names[-1]) == (classes, first, last)
    assert checkpoint.network.preprocessing == pixels
    backbone = checkpoint.build_network().backbone
    assert isinstance(backbone, VGG16)
    assert float(backbone.preprocess.get_buffer("mean").flatten()[0]) == pytest.approx(mean), "red"
    # Said otherwise, that counts.
    words = ["--head", head, "--preprocessing", "caffe"]
    assert command("vgg16", file, tmp_path / "b.pt", *words) == 0
    assert load_checkpoint(tmp_path / "b.pt").network.preprocessing == "caffe"


def test_a_net_of_unknown_classes(tmp_path: Path, capsys: Capture) -> None:
    file = caffe_file(tmp_path / "a.caffemodel", scores(vgg_blobs(), 7, *HEADS["32s"]))
    error = failure(capsys, "vgg16", file, "--head", "32s")
    assert "score_fr has 7 classes, and the authors' nets have 21, 40, 60, 33" in error
    assert "--classes FILE" in error


def test_colour_and_depth(tmp_path: Path) -> None:
    """nyud-fcn32s-color-d: a fourth channel in conv1_1_bgrd."""
    blobs = scores(vgg_blobs(), 40, *HEADS["32s"])
    del blobs["conv1_1"]
    blobs["conv1_1_bgrd"] = [random_blob(2, 4, 3, 3), random_blob(2)]
    file = caffe_file(tmp_path / "a.caffemodel", blobs)
    assert command("vgg16", file, tmp_path / "a.pt", "--head", "32s") == 0
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.network.modality == checkpoint.dataset.modality == "rgbd"
    assert checkpoint.network.preprocessing == "nyudv2"
    state = checkpoint.build_network().state_dict()
    got = state["backbone.conv1_1_bgrd.weight"].numpy()
    assert np.array_equal(got, blobs["conv1_1_bgrd"][0])


def test_hha_must_be_said(tmp_path: Path) -> None:
    """nyud-fcn32s-hha has the layers of nyud-fcn32s-color."""
    file = caffe_file(tmp_path / "a.caffemodel", scores(vgg_blobs(), 40, *HEADS["32s"]))
    words = ["--head", "32s", "--modality", "hha"]
    assert command("vgg16", file, tmp_path / "a.pt", *words) == 0
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.network.modality == checkpoint.dataset.modality == "hha"
    backbone = checkpoint.build_network().backbone
    assert isinstance(backbone, VGG16)
    assert float(backbone.preprocess.get_buffer("mean").flatten()[0]) == pytest.approx(132.431)


def test_two_streams(tmp_path: Path, capsys: Capture) -> None:
    """nyud-fcn32s-color-hha: every layer twice, the scores averaged."""
    blobs: Blobs = {}
    for stream in ("color", "hha"):
        torch.manual_seed(len(stream))
        one = scores(vgg_blobs(), 40, *HEADS["32s"])
        del one["upscore"]
        for name, arrays in one.items():
            blobs[f"{name}{stream}"] = [array + np.float32(len(stream)) for array in arrays]
    blobs["upscore"] = scores({}, 40, {}, "upscore", 64)["upscore"]
    file = caffe_file(tmp_path / "a.caffemodel", blobs)
    assert command("vgg16", file, tmp_path / "a.pt", "--head", "32s") == 0
    said = capsys.readouterr().out
    assert "score_frhha" in said and "unknown" not in said
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.network.architecture == "fcn32s-vgg16_0.03125-pad100-rgb-hha"
    state = checkpoint.build_network().state_dict()
    for stream in ("color", "hha"):
        for name in ("conv1_1", "fc6", "fc7"):
            got = state[f"backbone.{stream}.{name}.weight"].numpy()
            assert np.array_equal(got, blobs[f"{name}{stream}"][0])
        got = state[f"score_fr.{stream}.weight"].numpy()
        assert np.array_equal(got, blobs[f"score_fr{stream}"][0])
    del blobs["conv3_2hha"]
    caffe_file(file, blobs)
    error = failure(capsys, "vgg16", file, "--head", "32s")
    assert "conv3_2hha: missing, want 8x8x3x3" in error


@pytest.mark.parametrize("head", ["32s", "16s", "8s"])
def test_two_heads(head: str, tmp_path: Path, capsys: Capture) -> None:
    """siftflow-fcn*: 33 semantic classes and 3 geometric ones."""
    inputs, last, kernel = HEADS[head]
    blobs = vgg_blobs()
    for name, classes in (("sem", 33), ("geo", 3)):
        named = {f"{score}_{name}": channels for score, channels in inputs.items()}
        blobs = scores(blobs, classes, named, f"{last}_{name}", kernel)
    file = caffe_file(tmp_path / "a.caffemodel", blobs)
    assert command("vgg16", file, tmp_path / "a.pt", "--head", head) == 0
    assert "unknown" not in capsys.readouterr().out
    checkpoint = load_checkpoint(tmp_path / "a.pt")
    assert checkpoint.dataset.head_sizes == {"sem": 33, "geo": 3}
    assert checkpoint.network.preprocessing == "siftflow"
    network = checkpoint.build_network()
    state = network.state_dict()
    for score in inputs:
        for name in ("sem", "geo"):
            got = state[f"{score}_{name}.weight"].numpy()
            assert np.array_equal(got, blobs[f"{score}_{name}"][0])
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 20, 30)).shape == (1, 36, 20, 30)
    other = "8s" if head != "8s" else "16s"
    assert f"holds an FCN-{head}" in failure(capsys, "vgg16", file, "--head", other)
