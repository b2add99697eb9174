"""A classifier's weights in a fully convolutional network compute what they computed there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.backbones.vgg16 import VGG16
from model.build import BACKBONES
from model.surgery import convolutions, transplant
from model.weights.layers import Layer, LayerWeights, WeightsError
from model.weights.read import read_weights
from tests import caffemodel
from tests.vgg_classifier import (
    FC,
    LAYERS,
    WIDTH,
    Classifier,
    caffe_arrays,
    write_keras_npz,
    write_plain_npz,
    write_pth,
)


def write_caffemodel(path: Path, classifier: Classifier) -> None:
    layers = {name: list(blobs) for name, blobs in caffe_arrays(classifier).items()}
    form: caffemodel.Format = "layers" if path.stem == "old" else "layer"
    path.write_bytes(caffemodel.net(layers, form))


def backbone() -> VGG16:
    return VGG16("pad100", width=WIDTH).eval()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("vgg16.pth", write_pth),
        ("vgg16.npz", write_plain_npz),
        ("keras.npz", write_keras_npz),
        ("new.caffemodel", write_caffemodel),
        ("old.caffemodel", write_caffemodel),
    ],
)
def test_convolutionalised_vgg16_is_the_classifier(
    name: str, write: Callable[[Path, Classifier], None], tmp_path: Path
) -> None:
    """At 224 with conv1_1 padding 1, fc6 sees the 7x7 map once: fc7 is the classifier's."""
    classifier = Classifier().eval()
    write(tmp_path / name, classifier)
    file = read_weights(tmp_path / name)
    layers = BACKBONES["vgg16"].names.renamed(file.layers, file.convention)
    network = backbone()
    report = transplant(network, layers, dropped={"fc8"})
    first = network.get_submodule("conv1_1")
    assert isinstance(first, nn.Conv2d)
    first.padding = (1, 1)
    images = torch.rand(2, 3, 224, 224) * 255
    with torch.inference_mode():
        got = network(images)[32]
        wanted = classifier.fc7(network.preprocess(images))
    assert got.shape == (2, FC, 1, 1)
    assert float(wanted.abs().max()) > 1
    torch.testing.assert_close(got.flatten(1), wanted, rtol=1e-4, atol=1e-4 * float(wanted.max()))
    assert report.layers("dropped") == ["fc8"]
    assert report.layers("copied") == LAYERS
    assert report.layers("reshaped") == ["fc6", "fc7"]


def layer_weights() -> LayerWeights:
    return {name: Layer(*arrays) for name, arrays in caffe_arrays(Classifier()).items()}


def test_the_report_names_what_was_done() -> None:
    layers = layer_weights() | {"aux": Layer(np.zeros((2, 3), np.float32))}
    report = transplant(backbone(), layers, dropped={"fc8"})
    table = report.table().splitlines()
    assert table[0] == "conv1_1  copied    2x3x3x3"
    assert "fc6      reshaped  128x784 -> 128x16x7x7" in table
    assert table[-2:] == ["fc8      dropped   5x128", "aux      unknown   2x3"]


def without(name: str) -> Callable[[LayerWeights], LayerWeights]:
    return lambda layers: {key: layer for key, layer in layers.items() if key != name}


def changed(name: str, layer: Layer) -> Callable[[LayerWeights], LayerWeights]:
    return lambda layers: layers | {name: layer}


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("conv4_2"), "conv4_2: missing, want 16x16x3x3"),
        (changed("fc6", Layer(zeros(FC, 785), zeros(FC))), "weight 128x785, want 128x16x7x7"),
        # As many numbers, in another shape.
        (changed("fc6", Layer(zeros(64, 1568), zeros(FC))), "fc6: mismatch, weight 64x1568"),
        (changed("fc6", Layer(zeros(FC, 7, 7, 16), zeros(FC))), "weight 128x7x7x16, want 128x16"),
        (changed("fc7", Layer(zeros(FC, FC), zeros(9))), "fc7: mismatch, bias 9, want 128"),
        (changed("fc7", Layer(zeros(FC, FC), zeros(2, 64))), "bias 2x64, want 128"),
        (changed("fc7", Layer(zeros(FC, FC))), "fc7: mismatch, has no bias"),
        (changed("fc7", Layer(zeros(FC, FC) * np.nan, zeros(FC))), "fc7: .*not finite"),
        (changed("fc7", Layer(zeros(FC, FC), zeros(FC) + np.inf)), "fc7: .*not finite"),
    ],
)
def test_what_does_not_fit_changes_nothing(
    change: Callable[[LayerWeights], LayerWeights], message: str
) -> None:
    network = backbone()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=f"a file does not fit the network.*{message}"):
        transplant(network, change(layer_weights()), source="a file")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_every_layer_that_does_not_fit_is_named() -> None:
    with pytest.raises(WeightsError, match=r"conv1_1: missing.*fc6: missing"):
        transplant(backbone(), without("conv1_1")(without("fc6")(layer_weights())))


def test_a_bias_where_none_is_wanted() -> None:
    with pytest.raises(WeightsError, match="has a bias, want none"):
        transplant(
            nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)), {"0": Layer(zeros(1, 1), zeros(1))}
        )


def test_lenient_fills_what_fits() -> None:
    network = backbone()
    old = network.get_parameter("conv1_1.weight").clone()
    report = transplant(network, without("conv1_1")(layer_weights()), strict=False)
    assert report.layers("missing") == ["conv1_1"]
    assert torch.equal(network.get_parameter("conv1_1.weight"), old)
    wanted = layer_weights()["conv1_2"].weight
    assert np.array_equal(network.get_parameter("conv1_2.weight").detach().numpy(), wanted)


def test_layers_may_be_named_unlike_their_modules() -> None:
    layer = nn.Conv2d(2, 2, 1)
    network = nn.Sequential(layer)
    transplant(network, {"a/b": Layer(np.eye(2), zeros(2))}, {"a/b": "0"})
    assert convolutions(network) == {"0": "0"}
    assert layer.weight.squeeze().tolist() == [[1, 0], [0, 1]]
