"""`fcn import-weights` for every backbone, and the released FCNs other than VOC's VGG16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cli.main import main
from model.backbones import mobilenet_v1
from model.backbones.alexnet import AlexNet
from model.backbones.conv_norm import widened
from model.backbones.googlenet import GoogLeNet
from model.backbones.vgg16 import VGG16
from model.build import BACKBONES, NetworkSpec, build
from model.surgery import convolutions
from model.upsample import bilinear_kernel
from tests import caffemodel
from tests.caffemodel import Format
from tests.other_classifiers import (
    CAFFENET_FC,
    CaffeNet,
    NormedClassifier,
    keras_mobilenet,
    run_keras_mobilenet,
)
from tests.vgg_classifier import FC, NARROW, caffe_fcn
from training.checkpoint import load_checkpoint
from training.datasets.folder import load_info
from training.import_weights import RELEASED

MOBILENET = tuple(widened(count, 1 / 8) for count in mobilenet_v1._CHANNELS)
Capture = pytest.CaptureFixture[str]
Blobs = dict[str, list[np.ndarray]]
WIDTHS = {"vgg16": 1 / 32, "alexnet": 1 / 32, "googlenet": 1 / 16, "mobilenet_v1": 1 / 8}


def command(network: str, file: Path, out: Path, *words: str) -> int:
    """The file's network has the fewest channels that its kind can have."""
    width = ["--width", str(WIDTHS[network])]
    return main(["import-weights", str(file), "--network", network, "-o", str(out), *width, *words])


def failure(capsys: Capture, network: str, file: Path, *words: str) -> str:
    out = file.with_name("refused")
    assert command(network, file, out, *words) == 1
    assert not out.exists()
    error = capsys.readouterr().err
    assert error.startswith("fcn: ") and error.count("\n") == 1
    return error


def caffe_file(path: Path, blobs: Blobs, form: Format = "layer") -> Path:
    path.write_bytes(caffemodel.net(blobs, form))
    return path


def random_blob(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("form", ["layer", "layers"])
def test_convolutionalised_caffenet_is_the_classifier(
    form: Format, tmp_path: Path, capsys: Capture
) -> None:
    """At 227 without padding, fc6 sees the 6x6 map once: fc7 is the classifier's."""
    classifier = CaffeNet().eval()
    file = caffe_file(tmp_path / "caffenet.caffemodel", classifier.blobs(), form)
    assert command("alexnet", file, tmp_path / "start.npz") == 0
    said = capsys.readouterr().out
    assert "conv2  copied    8x2x5x5" in said and "fc6    reshaped" in said
    assert "fc8    dropped" in said and "weights for caffe preprocessing" in said
    backbone = AlexNet("pad100", width=WIDTHS["alexnet"]).eval()
    backbone.load_imagenet(tmp_path / "start.npz")
    backbone.conv1.padding = (0, 0)
    images = torch.rand(2, 3, 227, 227) * 255
    with torch.inference_mode():
        got = backbone(images)[32]
        wanted = classifier.features(backbone.preprocess(images))
    assert got.shape == (2, CAFFENET_FC, 1, 1) and float(wanted.max()) > 1
    torch.testing.assert_close(got.flatten(1), wanted, rtol=1e-4, atol=1e-4 * float(wanted.max()))


def test_vgg16_with_batch_norms_is_folded(tmp_path: Path, capsys: Capture) -> None:
    classifier = NormedClassifier().eval()
    torch.save(classifier.state_dict(), tmp_path / "vgg16_bn.pth")
    assert command("vgg16", tmp_path / "vgg16_bn.pth", tmp_path / "start.npz") == 0
    said = capsys.readouterr().out
    assert "features.1   folded    into conv1_1" in said
    assert "features.41  folded    into conv5_3" in said
    backbone = VGG16("pad100", preprocessing="torchvision", width=WIDTHS["vgg16"]).eval()
    backbone.load_imagenet(tmp_path / "start.npz")
    first = backbone.get_submodule("conv1_1")
    assert isinstance(first, nn.Conv2d)
    first.padding = (1, 1)
    images = torch.rand(1, 3, 224, 224) * 255
    with torch.inference_mode():
        got = backbone(images)[32].flatten(1)
        wanted = classifier.fc7(backbone.preprocess(images))
    assert float(wanted.max()) > 1
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.max()))


def googlenet_blobs() -> Blobs:
    """Gives those of BVLC's GoogLeNet, with both auxiliary classifiers."""
    backbone = GoogLeNet(width=WIDTHS["googlenet"])
    blobs: Blobs = {}
    for name, path in convolutions(backbone).items():
        parameters = dict(backbone.get_submodule(path).named_parameters())
        shapes = [tuple(parameters[key].shape) for key in ("weight", "bias")]
        blobs[name.replace(".", "/")] = [random_blob(*shape) for shape in shapes]
    for i in (1, 2):
        blobs[f"loss{i}/conv"] = [random_blob(8, 32, 1, 1), random_blob(8)]
        blobs[f"loss{i}/fc"] = [random_blob(9, 128), random_blob(9)]
        blobs[f"loss{i}/classifier"] = [random_blob(5, 9), random_blob(5)]
    return blobs | {"loss3/classifier": [random_blob(5, 64), random_blob(5)]}


@pytest.mark.parametrize("form", ["layer", "layers"])
def test_googlenet_without_its_auxiliary_classifiers(
    form: Format, tmp_path: Path, capsys: Capture
) -> None:
    blobs = googlenet_blobs()
    file = caffe_file(tmp_path / "bvlc_googlenet.caffemodel", blobs, form)
    assert command("googlenet", file, tmp_path / "start.npz") == 0
    said = capsys.readouterr().out
    for name in ("loss1/conv", "loss2/fc", "loss2/classifier", "loss3/classifier"):
        assert f"{name}  " in said
    assert said.count("dropped") == 7 and "unknown" not in said
    backbone = GoogLeNet(width=WIDTHS["googlenet"])
    backbone.load_imagenet(tmp_path / "start.npz")
    state = backbone.state_dict()
    assert len(convolutions(backbone)) == 57
    for name in convolutions(backbone):
        weight, bias = blobs[name.replace(".", "/")]
        assert np.array_equal(state[f"{name}.weight"].numpy(), weight)
        assert np.array_equal(state[f"{name}.bias"].numpy(), bias)


def test_every_layer_of_googlenet_has_its_name() -> None:
    """Those of the table, and no other."""
    with torch.device("meta"):
        layers = convolutions(build(NetworkSpec("googlenet", "32s"), 1).backbone)
    assert set(BACKBONES["googlenet"].names.caffe.values()) == set(layers)


def test_keras_mobilenet_computes_the_same(tmp_path: Path, capsys: Capture) -> None:
    """Its norms folded, in the one layout of start weights."""
    channels, strides = MOBILENET, mobilenet_v1._STRIDES
    arrays = keras_mobilenet(channels, strides)
    np.savez(tmp_path / "keras.npz", **arrays)  # type: ignore[arg-type]
    start = tmp_path / "start.npz"
    assert command("mobilenet_v1", tmp_path / "keras.npz", start) == 0
    said = capsys.readouterr().out
    assert "conv1_bn       folded    into conv0" in said
    assert "conv_dw_13_bn  folded    into dw13" in said
    assert "conv_preds     dropped" in said and "weights for tensorflow preprocessing" in said
    backbone = mobilenet_v1.MobileNetV1(fc6_channels=0, width=WIDTHS["mobilenet_v1"]).eval()
    backbone.load_imagenet(start)
    images = torch.rand(2, 3, 96, 64) * 255
    with torch.inference_mode():
        got = backbone(images)[32]
        wanted = run_keras_mobilenet(arrays, strides, backbone.preprocess(images))
    assert got.shape == wanted.shape == (2, channels[-1], 3, 2) and float(wanted.std()) > 0.1
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    # And the file is itself one that can be imported, unchanged.
    assert command("mobilenet_v1", start, tmp_path / "again.npz") == 1
    assert "holds <U12" in capsys.readouterr().err
    with np.load(start) as first:
        plain = {name: first[name] for name in first if "/" in name}
    np.savez(tmp_path / "plain.npz", **plain)
    assert command("mobilenet_v1", tmp_path / "plain.npz", tmp_path / "again.npz") == 0
    with np.load(tmp_path / "again.npz") as again:
        assert all(np.array_equal(again[name], array) for name, array in plain.items())


def test_mobilenet_weights_that_do_not_fit(tmp_path: Path, capsys: Capture) -> None:
    arrays = keras_mobilenet(MOBILENET, mobilenet_v1._STRIDES)
    del arrays["conv_pw_3/kernel:0"]
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    error = failure(capsys, "mobilenet_v1", tmp_path / "a.npz")
    assert "a.npz: the batch norm conv_pw_3_bn follows no convolution" in error
    np.savez(tmp_path / "b.npz", **{"conv0/w": random_blob(4, 3)})  # type: ignore[arg-type]
    assert "conv0: mismatch, " in failure(capsys, "mobilenet_v1", tmp_path / "b.npz")
    error = failure(capsys, "mobilenet_v1", tmp_path / "a.npz", "--head", "8s")
    assert "--head must be none" in error


@pytest.mark.parametrize(
    ("network", "layer", "reason"),
    [
        ("alexnet", "features.0", "torchvision's AlexNet, which is another network"),
        ("googlenet", "inception3a.branch1.conv", "torchvision's GoogLeNet, which is another"),
    ],
)
def test_torchvisions_other_networks_are_refused(
    network: str, layer: str, reason: str, tmp_path: Path, capsys: Capture
) -> None:
    """They are named with what differs, not as so many unknown layers."""
    torch.save({f"{layer}.weight": torch.zeros(2, 3, 1, 1)}, tmp_path / "a.pth")
    error = failure(capsys, network, tmp_path / "a.pth")
    assert "a.pth: it is " in error and reason in error and "caffemodel" in error


def test_norms_without_a_place_are_refused(tmp_path: Path, capsys: Capture) -> None:
    state = {"a.weight": torch.zeros(1, 1, 1, 1)}
    norm = {"b.running_mean": torch.zeros(1), "b.running_var": torch.ones(1)}
    torch.save(state | norm, tmp_path / "a.pth")
    assert "it has batch norms (b ...)" in failure(capsys, "alexnet", tmp_path / "a.pth")
    assert "the batch norm b follows no convolution" in failure(capsys, "vgg16", tmp_path / "a.pth")
    torch.save(state | {"b.running_mean": torch.zeros(1)}, tmp_path / "a.pth")
    assert "'b' has no running mean and variance" in failure(capsys, "vgg16", tmp_path / "a.pth")
    torch.save(state | norm | {"b.running_var": torch.ones(2)}, tmp_path / "a.pth")
    assert "the norm 'b' differ in length" in failure(capsys, "vgg16", tmp_path / "a.pth")
    features = {f"features.0.{name}": torch.zeros(2, 3, 3, 3) for name in ("weight",)}
    other = {"features.1.running_mean": torch.zeros(5), "features.1.running_var": torch.ones(5)}
    torch.save(features | other, tmp_path / "a.pth")
    error = failure(capsys, "vgg16", tmp_path / "a.pth")
    assert "features.1 has 5 channels, features.0 2" in error


def test_caffes_weights_under_pytorch_names_must_say_so(tmp_path: Path, capsys: Capture) -> None:
    torch.save(CaffeNet().state_dict(), tmp_path / "a.pth")
    error = failure(capsys, "alexnet", tmp_path / "a.pth")
    assert "alexnet can only be fed caffe" in error and "--preprocessing caffe" in error
    words = ["--preprocessing", "caffe"]
    assert command("alexnet", tmp_path / "a.pth", tmp_path / "start.npz", *words) == 0


def scores(blobs: Blobs, classes: int, inputs: dict[str, int], last: str, kernel: int) -> Blobs:
    """With the head of an FCN."""
    for name, channels in inputs.items():
        blobs[name] = [random_blob(classes, channels, 1, 1), random_blob(classes)]
    square = bilinear_kernel(kernel).numpy()
    blobs[last] = [np.multiply.outer(np.eye(classes), square).astype(np.float32)]
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
    blobs = scores(caffe_fcn(), classes, *HEADS[head])
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
    file = caffe_file(tmp_path / "a.caffemodel", scores(caffe_fcn(), 7, *HEADS["32s"]))
    error = failure(capsys, "vgg16", file, "--head", "32s")
    assert "score_fr has 7 classes, and the authors' nets have 21, 40, 60, 33" in error
    assert "--classes FILE" in error


def test_colour_and_depth(tmp_path: Path) -> None:
    """nyud-fcn32s-color-d: a fourth channel in conv1_1_bgrd."""
    blobs = scores(caffe_fcn(), 40, *HEADS["32s"])
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
    file = caffe_file(tmp_path / "a.caffemodel", scores(caffe_fcn(), 40, *HEADS["32s"]))
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
        one = scores(caffe_fcn(), 40, *HEADS["32s"])
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
