"""Networks that see depth: what their first layers are given, how they start, how they fuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.backbones.two_streams import TwoStreams
from model.backbones.vgg16 import VGG16
from model.build import NetworkSpec, build
from model.fcn import FCN, FusedScore
from model.modality import Modality
from model.weights.layers import Layer
from model.weights.start import write_start_weights

CLASSES = 5


def vgg(modality: Modality = "rgb") -> VGG16:
    return VGG16(
        "same", 8, preprocessing="nyudv2", dropout=0.0, width=1 / 32, modality=modality
    ).eval()


def with_scores(network: FCN) -> FCN:
    for name, layer in network.named_modules():
        if "score_" in name and isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    return network.eval()


def channels(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("modality", "pixel", "wanted"),
    [
        ("rgb", (92.318, 97.203, 117.19), (1, 0, 0)),  # to BGR
        ("rgbd", (92.318, 97.203, 117.19, 7.844 + 0.5), (1, 0, 0, 0.5)),
        ("hha", (133.431, 94.076, 118.477), (1, 0, 0)),  # which is not flipped
    ],
)
def test_pixels_are_less_the_mean_of_the_data_set(
    modality: Modality, pixel: tuple[float, ...], wanted: tuple[float, ...]
) -> None:
    given = vgg(modality).preprocess(channels(*pixel))
    assert torch.allclose(given, channels(*wanted), atol=1e-4)


def test_another_data_set_has_another_mean() -> None:
    sift = VGG16("same", 8, preprocessing="siftflow", width=1 / 32)
    given = sift.preprocess(channels(108.353, 115.294, 115.578))
    assert torch.allclose(given, channels(1, 0, 0), atol=1e-4)


def start_weights(path: Path, backbone: VGG16) -> dict[str, np.ndarray]:
    """Random ones for a VGG16 of that width; returns its conv1_1 and bias."""
    random = np.random.default_rng(0)
    layers = {}
    for name, layer in backbone.named_children():
        if isinstance(layer, nn.Conv2d):
            weight = random.normal(size=layer.weight.shape).astype(np.float32)
            layers[name] = Layer(weight, random.normal(size=len(weight)).astype(np.float32))
    write_start_weights(path, layers, network="vgg16", preprocessing="caffe")
    first = layers["conv1_1"]
    assert first.bias is not None
    return {"weight": first.weight, "bias": first.bias}


def test_the_depth_filter_starts_as_the_mean_of_the_colours(tmp_path: Path) -> None:
    first = start_weights(tmp_path / "vgg16.npz", vgg())
    early = vgg("rgbd")
    early.load_imagenet(tmp_path / "vgg16.npz")
    layer = early.get_submodule("conv1_1_bgrd")
    assert isinstance(layer, nn.Conv2d)
    assert np.array_equal(layer.weight[:, :3].detach(), first["weight"])
    assert np.allclose(layer.weight[:, 3].detach(), first["weight"].mean(axis=1))
    assert np.array_equal(layer.bias.detach(), first["bias"])  # type: ignore[union-attr]
    assert not hasattr(early, "conv1_1")


def test_both_streams_start_from_imagenet(tmp_path: Path) -> None:
    first = start_weights(tmp_path / "vgg16.npz", vgg())
    streams = TwoStreams(vgg(), vgg("hha"))
    streams.load_imagenet(tmp_path / "vgg16.npz")
    for stream in (streams.color, streams.hha):
        layer = stream.get_submodule("conv1_1")
        assert isinstance(layer, nn.Conv2d)
        assert np.array_equal(layer.weight.detach(), first["weight"])


@pytest.mark.parametrize("variant", ["32s", "16s", "8s"])
def test_late_fusion_is_the_mean_of_two_nets(variant: str) -> None:
    """Upsampling is linear and its crops are the same, so fusing scores fuses logits."""
    both = with_scores(FCN(TwoStreams(vgg(), vgg("hha")), CLASSES, variant))  # type: ignore[arg-type]
    alone = []
    for stream, modality in (("color", "rgb"), ("hha", "hha")):
        net = FCN(vgg(modality), CLASSES, variant).eval()  # type: ignore[arg-type]
        weights = both.state_dict()
        wanted = net.state_dict()
        for name in wanted:
            module, _, rest = name.partition(".")
            wanted[name] = weights[f"{module}.{stream}.{rest}"]
        net.load_state_dict(wanted)
        alone.append(net)
    images = torch.rand(2, 6, 45, 61) * 255
    with torch.inference_mode():
        wanted_logits = (alone[0](images[:, :3]) + alone[1](images[:, 3:])) / 2
        assert torch.allclose(both(images), wanted_logits, rtol=1e-4, atol=1e-4)
        assert wanted_logits.std() > 0.01


@pytest.mark.parametrize(
    ("modality", "inputs", "scores"),
    [("rgbd", 4, nn.Conv2d), ("hha", 3, nn.Conv2d), ("rgb-hha", 6, FusedScore)],
)
@pytest.mark.parametrize("padding", ["same", "pad100"])
def test_built(modality: Modality, inputs: int, scores: type, padding: str) -> None:
    spec = NetworkSpec("vgg16", "16s", fc6_channels=8, padding=padding, modality=modality)  # type: ignore[arg-type]
    network = build(spec, CLASSES).eval()
    assert isinstance(network.score_fr, scores)
    assert spec.architecture.endswith(f"-{modality}")
    with torch.inference_mode():
        assert network(torch.rand(1, inputs, 20, 31)).shape == (1, CLASSES, 20, 31)


def test_both_streams_train_at_the_backbones_rate() -> None:
    streams = TwoStreams(vgg(), vgg("hha"))
    count = sum(1 for module in streams.pretrained_modules() for _ in module.parameters())
    assert count == 2 * 13 * 2  # fc6 and fc7 are not VGG's at this width


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"backbone": "alexnet", "variant": "32s"}, "modality is for vgg16, not alexnet"),
        ({"preprocessing": "torchvision"}, "modality rgbd takes weights in BGR"),
        ({"modality": "rgb-hha", "variant": "pool4"}, "rgb-hha is for whole nets"),
    ],
)
def test_refused(changes: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(NetworkSpec("vgg16", modality="rgbd"), **changes)  # type: ignore[arg-type]
