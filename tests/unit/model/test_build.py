"""The description of a network, as recipes and checkpoints hold it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from model.backbones.mobilenet_v1 import MobileNetV1
from model.backbones.vgg16 import VGG16
from model.build import BACKBONES, NetworkSpec, build


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (NetworkSpec("mobilenet_v1"), "fcn8s-mobilenet_v1"),
        (NetworkSpec("vgg16"), "fcn8s-vgg16"),
        (NetworkSpec("vgg16", "32s"), "fcn32s-vgg16"),
        (NetworkSpec("vgg16", "pool4"), "fcn-pool4-vgg16"),
        (NetworkSpec("alexnet", "32s", padding="pad100"), "fcn32s-alexnet-pad100"),
        (NetworkSpec("googlenet"), "fcn8s-googlenet"),
        (NetworkSpec("vgg16", batch_norm=True, padding="pad100"), "fcn8s-vgg16_bn-pad100"),
        (NetworkSpec("mobilenet_v1", width=1.5), "fcn8s-mobilenet_v1_1.5"),
        (NetworkSpec("vgg16", batch_norm=True, width=0.5), "fcn8s-vgg16_bn_0.5"),
        (NetworkSpec("efficientnet_lite0", "16s"), "fcn16s-efficientnet_lite0"),
    ],
)
def test_architecture(spec: NetworkSpec, wanted: str) -> None:
    assert spec.architecture == wanted


def test_what_is_left_out_is_the_backbones_own() -> None:
    with torch.device("meta"):
        vgg, mobile = build(NetworkSpec("vgg16"), 2), build(NetworkSpec("mobilenet_v1"), 2)
    assert isinstance(vgg.backbone, VGG16) and isinstance(mobile.backbone, MobileNetV1)
    assert (vgg.backbone.channels[32], vgg.backbone.drop6.p) == (4096, 0.5)
    assert vgg.backbone.weights_preprocessing == "caffe"
    assert vgg.backbone.get_submodule("conv1_1").padding == (1, 1)
    assert (mobile.backbone.channels[32], mobile.backbone.dropout.p) == (256, 0.1)


def test_every_field_reaches_the_network() -> None:
    spec = NetworkSpec(
        "vgg16",
        "16s",
        upsampling="learned",
        pool4_scale=0.01,
        fc6_channels=32,
        skip_channels=12,
        dropout=0.25,
        padding="pad100",
        preprocessing="torchvision",
    )
    with torch.device("meta"):
        network = build(spec, 7)
    backbone = network.backbone
    assert isinstance(backbone, VGG16)
    assert (network.variant, network.num_classes, network.stride) == ("16s", 7, 16)
    assert (network.upscore2.mode, network.pool4_scale) == ("learned", 0.01)
    assert isinstance(network.score_pool4, nn.Sequential)
    assert network.score_pool4[0].weight.shape == (12, 512, 3, 3)
    assert (backbone.channels[32], backbone.drop7.p) == (32, 0.25)
    assert backbone.weights_preprocessing == "torchvision"
    assert backbone.get_submodule("conv1_1").padding == (100, 100)


def test_mobilenet_without_fc6() -> None:
    with torch.device("meta"):
        network = build(NetworkSpec("mobilenet_v1", fc6_channels=0, dropout=0.0), 2)
    assert network.backbone.channels[32] == 1024
    assert network.score_fr.in_channels == 1024


def test_a_checkpoint_from_before_vgg16_still_reads() -> None:
    """Its fields were these; what has come since must have a default."""
    old: dict[str, Any] = {
        "backbone": "mobilenet_v1",
        "variant": "8s",
        "upsampling": "fixed",
        "fc6_channels": 256,
        "skip_channels": 64,
        "dropout": 0.1,
    }
    spec = NetworkSpec(**old)
    assert dataclasses.asdict(spec).items() >= old.items()
    assert NetworkSpec(**dataclasses.asdict(spec)) == spec
    named_before = NetworkSpec.from_saved({"backbone": "vgg16", "normalisation": "torchvision"})
    assert named_before.preprocessing == "torchvision"


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_what_its_spec_says(name: str) -> None:
    own = BACKBONES[name]
    spec = NetworkSpec(name, "8s" if 8 in own.taps else "32s", width=1 / 16)
    network = build(spec, 3).eval()
    backbone = network.backbone
    assert (network.spec, backbone.name) == (spec, name)
    assert set(own.taps) == set(backbone.channels) == set(backbone.maps)
    assert own.preprocessing[0] in ("caffe", backbone.weights_preprocessing)
    assert bool(backbone.norm_pairs()) is (own.norms == "always") is spec.has_norms
    assert {stride: at.stride for stride, at in backbone.maps.items()} == {s: s for s in own.taps}
    for height, width in ((1, 1), (2, 7), (33, 1), (50, 33), (96, 64)):
        with torch.inference_mode():
            maps = backbone(torch.rand(1, 3, height, width) * 255)
        for stride, channels in backbone.channels.items():
            assert maps[stride].shape == (1, channels, -(-height // stride), -(-width // stride))


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_fc6_and_fc7_are_pretrained_only_at_their_own_width(name: str) -> None:
    def pretrained(fc6_channels: int) -> set[str]:
        with torch.device("meta"):
            backbone = build(NetworkSpec(name, "32s", fc6_channels=fc6_channels), 2).backbone
        parts = backbone.pretrained_modules()
        return {name for name, module in backbone.named_children() if module in parts}

    assert len(pretrained(512)) > 4
    assert pretrained(4096) - pretrained(512) == {"fc6", "fc7"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": "mobilenet_v1", "padding": "pad100"}, "not mobilenet_v1"),
        ({"backbone": "mobilenet_v1", "preprocessing": "caffe"}, "preprocessing is for vgg16"),
        ({"backbone": "alexnet", "variant": "8s"}, "alexnet has no inner map .* is 32s$"),
        ({"backbone": "alexnet", "variant": "16s"}, "alexnet has no inner map .* is 32s$"),
        ({"backbone": "alexnet", "variant": "32s", "fc6_channels": 0}, "cannot do without fc6"),
        ({"backbone": "alexnet", "variant": "32s", "preprocessing": "caffe"}, "not alexnet"),
        ({"backbone": "googlenet", "fc6_channels": 8}, "fc6_channels is for .* not googlenet"),
        ({"backbone": "googlenet", "variant": "pool4"}, "variant pool4 is for vgg16"),
        ({"backbone": "vgg16", "variant": "pool4", "fc6_channels": 8}, "ends before fc6"),
        ({"backbone": "vgg16", "variant": "pool4", "dropout": 0.1}, "ends before fc6"),
        (
            {"backbone": "googlenet", "variant": "4s"},
            "googlenet has no inner map of stride 4 .* is 32s or 16s or 8s$",
        ),
        ({"backbone": "vgg16", "pool2_channels": 4}, "pool2_channels is for 4s, not 8s"),
        ({"backbone": "vgg16", "variant": "4s", "pool2_channels": -1}, "must not be negative"),
        ({"backbone": "vgg16", "pool4_scale": 0.0}, "must be above 0"),
        ({"backbone": "vgg16", "pool3_scale": -1.0}, "must be above 0"),
        (
            {"backbone": "vgg16", "variant": "32s", "pool4_scale": 0.01},
            "for 16s, 8s and 4s, not 32s",
        ),
        ({"backbone": "vgg16", "variant": "16s", "pool3_scale": 0.01}, "for 8s and 4s, not 16s"),
        ({"backbone": "vgg16", "fc6_channels": 0}, "cannot do without fc6"),
        ({"backbone": "vgg16", "fc6_channels": -1}, "must not be negative"),
        ({"backbone": "mobilenet_v1", "skip_channels": -1}, "must not be negative"),
        ({"backbone": "vgg16", "dropout": 1.0}, "want 0 <= dropout < 1"),
        ({"backbone": "vgg16", "dropout": -0.1}, "want 0 <= dropout < 1"),
        ({"backbone": "alexnet", "variant": "32s", "batch_norm": True}, "batch_norm is for vgg16"),
        (
            {"backbone": "vgg16", "modality": "hha", "batch_norm": True},
            "batch_norm is for modality rgb",
        ),
        ({"backbone": "vgg16", "preprocessing": "none"}, "vgg16 takes caffe, torchvision"),
        ({"backbone": "mobilenet_v1", "width": 0}, "want above 0, at most 4"),
        ({"backbone": "mobilenet_v2"}, "no backbone 'mobilenet_v2': want one of alexnet"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkSpec(**fields)
