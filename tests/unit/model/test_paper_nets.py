"""The nets of the paper as it describes them: parameters, receptive fields, strides, crops, sizes.

Full-width networks run on torch's "meta" device, which computes shapes only. VGG16's own parameters
and values are in test_vgg16.py.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from model.backbones.alexnet import AlexNet, alexnet_map
from model.backbones.base import Backbone
from model.backbones.caffe import Padding, Truncation
from model.backbones.googlenet import GoogLeNet, googlenet_maps
from model.backbones.vgg16 import VGG16, vgg16_pool_maps
from model.build import NetworkSpec, build
from model.coordinates import CropOffsets
from model.fcn import FCN, Variant

VARIANTS: tuple[Variant, ...] = get_args(Variant)
PADDINGS: tuple[Padding, ...] = get_args(Padding)
TRUNCATIONS: tuple[Truncation, ...] = get_args(Truncation)
SPECS = [
    *(NetworkSpec("alexnet", "32s", padding=padding) for padding in PADDINGS),
    *(NetworkSpec("googlenet", v, padding=p) for v in VARIANTS[:3] for p in PADDINGS),  # no 4s
    *(NetworkSpec("vgg16", v, padding=padding) for v in VARIANTS for padding in PADDINGS),
    *(NetworkSpec("vgg16", cut, padding=padding) for cut in TRUNCATIONS for padding in PADDINGS),
]


def conv_parameters(kernel: int, inputs: int, outputs: int, groups: int = 1) -> int:
    return kernel * kernel * inputs // groups * outputs + outputs


ALEXNET_PARAMETERS = {
    "conv1": conv_parameters(11, 3, 96),
    "conv2": conv_parameters(5, 96, 256, groups=2),
    "conv3": conv_parameters(3, 256, 384),
    "conv4": conv_parameters(3, 384, 384, groups=2),
    "conv5": conv_parameters(3, 384, 256, groups=2),
    "fc6": conv_parameters(6, 256, 4096),
    "fc7": conv_parameters(1, 4096, 4096),
}

# Source: arXiv 1409.4842 table 1, columns #1x1 to pool proj, and the output channels beside them.
GOOGLENET_TABLE = {
    "inception_3a": ((64, 96, 128, 16, 32, 32), 256),
    "inception_3b": ((128, 128, 192, 32, 96, 64), 480),
    "inception_4a": ((192, 96, 208, 16, 48, 64), 512),
    "inception_4b": ((160, 112, 224, 24, 64, 64), 512),
    "inception_4c": ((128, 128, 256, 24, 64, 64), 512),
    "inception_4d": ((112, 144, 288, 32, 64, 64), 528),
    "inception_4e": ((256, 160, 320, 32, 128, 128), 832),
    "inception_5a": ((256, 160, 320, 32, 128, 128), 832),
    "inception_5b": ((384, 192, 384, 48, 128, 128), 1024),
}


def googlenet_parameters() -> dict[str, int]:
    wanted = {
        "conv1": conv_parameters(7, 3, 64),
        "conv2": conv_parameters(1, 64, 64) + conv_parameters(3, 64, 192),
    }
    inputs = 192
    for name, ((one, reduce3, three, reduce5, five, proj), outputs) in GOOGLENET_TABLE.items():
        wanted[name] = (
            conv_parameters(1, inputs, one + reduce3 + reduce5 + proj)
            + conv_parameters(3, reduce3, three)
            + conv_parameters(5, reduce5, five)
        )
        assert one + three + five + proj == outputs, "the table was copied wrongly"
        inputs = outputs
    return wanted


def counted(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("padding", PADDINGS)
def test_parameters_of_alexnet(padding: Padding) -> None:
    """57M in table 1 of arXiv 1411.4038."""
    with torch.device("meta"):
        network = build(NetworkSpec("alexnet", "32s", padding=padding), 21)
    parts = {name: counted(part) for name, part in network.backbone.named_children()}
    assert {name: count for name, count in parts.items() if count} == ALEXNET_PARAMETERS
    assert counted(network) == 56_868_224 + 4096 * 21 + 21
    assert round(counted(network) / 1e6) == 57


@pytest.mark.parametrize("padding", PADDINGS)
def test_parameters_of_googlenet(padding: Padding) -> None:
    """6M in table 1 of arXiv 1411.4038."""
    with torch.device("meta"):
        network = build(NetworkSpec("googlenet", "32s", padding=padding), 21)
        eight = build(NetworkSpec("googlenet", "8s", padding=padding), 21)
    parts = {name: counted(part) for name, part in network.backbone.named_children()}
    assert {name: count for name, count in parts.items() if count} == googlenet_parameters()
    assert counted(network) == 5_973_552 + 1024 * 21 + 21
    assert round(counted(network) / 1e6) == 6
    assert counted(eight) - counted(network) == (832 * 21 + 21) + (480 * 21 + 21)


def test_layers_have_their_caffe_names() -> None:
    with torch.device("meta"):
        alexnet, googlenet = AlexNet(), GoogLeNet()
    assert {n.split(".")[0] for n, _ in alexnet.named_parameters()} == set(ALEXNET_PARAMETERS)
    names = {name for name, module in googlenet.named_modules() if isinstance(module, nn.Conv2d)}
    branches = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
    inner = {f"{inception}.{branch}" for inception in GOOGLENET_TABLE for branch in branches}
    assert names == inner | {"conv1.7x7_s2", "conv2.3x3_reduce", "conv2.3x3"}


@pytest.mark.parametrize("padding", PADDINGS)
def test_receptive_fields_and_strides_of_table_1(padding: Padding) -> None:
    alexnet, googlenet = alexnet_map(padding), googlenet_maps(padding)[32]
    assert alexnet.receptive_field_px == 355 and alexnet.stride == 32
    assert googlenet.receptive_field_px == 715 and googlenet.stride == 32
    averaged = googlenet.conv(7)  # the average pooling that the net discards
    assert averaged.receptive_field_px == 907 and averaged.stride == 32


def test_crops_of_the_padded_nets() -> None:
    """AlexNet's is the `offset` of voc-fcn-alexnet's prototxt; GoogLeNet's were never published."""
    with torch.device("meta"):
        alexnet, googlenet = AlexNet("pad100"), GoogLeNet("pad100")
    assert alexnet.crops == CropOffsets(final={32: 18}, odd_kernels=True)
    assert googlenet.crops == CropOffsets(
        final={32: 98, 16: 98, 8: 98},
        upsampled={16: 0, 8: 0},
        skips={16: 0, 8: 0},
        odd_kernels=True,
    )


def test_crops_of_the_same_nets() -> None:
    with torch.device("meta"):
        alexnet, googlenet = AlexNet("same"), GoogLeNet("same")
    assert alexnet.crops == CropOffsets(final={32: 15}, odd_kernels=True)
    assert googlenet.crops == CropOffsets(
        final={32: 31, 16: 15, 8: 7},
        upsampled={16: 1, 8: 1},
        skips={16: 0, 8: 0},
        odd_kernels=True,
    )


def test_kernels_follow_from_where_the_cells_lie() -> None:
    def kernels(spec: NetworkSpec) -> list[int]:
        with torch.device("meta"):
            network = build(spec, 3)
        names = ("upscore2", "upscore_pool4", "upscore")
        modules = dict(network.named_children())
        return [getattr(modules[name], "kernel_size") for name in names if name in modules]  # noqa: B009

    assert kernels(NetworkSpec("alexnet", "32s", padding="pad100")) == [63]
    assert kernels(NetworkSpec("vgg16", "8s", padding="pad100")) == [4, 4, 16]
    assert kernels(NetworkSpec("googlenet", "8s", padding="pad100")) == [3, 3, 15]


# Two periods of the coarsest stride, then sides at and around larger multiples.
SIDES = [*range(1, 81), 127, 224, 255, 256, 257, 375, 500, 511, 512, 1023, 1299, 1300]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.architecture)
def test_the_output_has_the_size_of_the_input(spec: NetworkSpec) -> None:
    with torch.device("meta"):
        network = build(spec, 5).eval()
        wrong = [
            (height, width)
            for height, width in zip(SIDES, reversed(SIDES), strict=True)
            if network(torch.empty(2, 3, height, width)).shape != (2, 5, height, width)
        ]
    assert wrong == []


def narrow(backbone: str, padding: Padding) -> Backbone:
    torch.manual_seed(0)
    net: Backbone
    if backbone == "alexnet":
        net = AlexNet(padding, 8, width=1 / 32)
    elif backbone == "googlenet":
        net = GoogLeNet(padding, width=1 / 16)
    else:
        net = VGG16(padding, 8, width=1 / 16)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.constant_(layer.bias, 0.2)  # so few units would die on a small image
    return net


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("backbone", "variant"),
    [
        ("alexnet", "32s"),
        ("vgg16", "8s"),
        ("googlenet", "32s"),
        ("googlenet", "16s"),
        ("googlenet", "8s"),
    ],
)
def test_shifting_the_image_by_the_stride_shifts_the_logits_by_as_much(
    backbone: str, variant: Variant, padding: Padding
) -> None:
    network = FCN(narrow(backbone, padding), 3, variant).eval()
    randomise_scores(network)
    grey = torch.tensor([122.67892, 116.66877, 104.00699]).view(1, 3, 1, 1)  # zero to the net
    scene = grey.expand(1, 3, 1600, 1).clone()
    scene[:, :, 780:820] += 60 * torch.randn(1, 3, 40, 1)
    with torch.inference_mode():
        before, after = network(scene), network(scene.roll(32, dims=2))
    torch.testing.assert_close(
        before[:, :, 760:840],
        after[:, :, 792:872],
        rtol=1e-3,
        atol=1e-3 * float(before.abs().max()),
    )


def randomise_scores(network: FCN) -> None:
    """Score layers start at zero, which would make every comparison a comparison of zeros."""
    for name, layer in network.named_modules():
        if name.startswith("score") and isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("backbone", ["alexnet", "googlenet", "vgg16"])
def test_forward_and_an_answer_without_its_batch_mate(backbone: str, padding: Padding) -> None:
    network = FCN(narrow(backbone, padding), 3, "32s").eval()
    randomise_scores(network)
    for size in ((1, 1), (1, 40), (33, 20), (65, 97)):
        images = torch.rand(2, 3, *size) * 255
        with torch.inference_mode():
            together, alone = network(images), network(images[:1])
        assert together.shape == (2, 3, *size)
        assert together.abs().max() > 0
        largest = float(together.abs().max())
        torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4 * largest)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("cut", "stride"), [("pool5", 32), ("pool4", 16), ("pool3", 8)])
def test_a_truncated_net_ends_with_its_pool(cut: Truncation, stride: int, padding: Padding) -> None:
    with torch.device("meta"):
        whole = build(NetworkSpec("vgg16", "32s", padding=padding), 21)
        network = build(NetworkSpec("vgg16", cut, padding=padding), 21)
    block = int(cut[-1])
    names = {name for name, _ in network.backbone.named_parameters()}
    assert names == {
        name
        for name, _ in whole.backbone.named_parameters()
        if name.startswith("conv") and int(name[4]) <= block
    }
    assert network.stride == stride
    assert {name for name, _ in network.named_children()} == {"backbone", "score_fr", "upscore"}
    assert list(network.backbone.crops.final) == [stride]
    at = vgg16_pool_maps(padding)[block - 1].upsampled(stride)
    assert at.start + network.backbone.crops.final[stride] == 0


def test_a_truncated_net_gives_the_whole_nets_pool() -> None:
    torch.manual_seed(0)
    whole = VGG16("same", 8, width=1 / 16).eval()
    cut = VGG16("same", width=1 / 16, cut_after="pool4").eval()
    cut.load_state_dict(whole.state_dict(), strict=False)
    images = torch.rand(1, 3, 40, 50) * 255
    with torch.inference_mode():
        wanted, got = whole(images)[16], cut(images)[16]
    torch.testing.assert_close(got, wanted)


def test_variants_need_their_maps() -> None:
    with pytest.raises(
        ValueError, match="alexnet has no inner map of stride 16 for a skip: its variant is 32s"
    ):
        FCN(narrow("alexnet", "same"), 3, "8s")
    with pytest.raises(ValueError, match="needs a backbone cut after pool3, not fc7"):
        FCN(VGG16("same", 8, width=1 / 16), 3, "pool3")
    with pytest.raises(ValueError, match="needs a backbone cut after pool3, not pool4"):
        FCN(VGG16("same", width=1 / 16, cut_after="pool4"), 3, "pool3")
    with pytest.raises(ValueError, match="cut after pool4: the variant must be pool4"):
        FCN(VGG16("same", width=1 / 16, cut_after="pool4"), 3, "32s")


def test_at_once_scales_multiply_the_pools() -> None:
    """The same as scaling the weights of the score layers."""
    torch.manual_seed(0)
    network = FCN(VGG16("pad100", 8, width=1 / 16), 3, pool4_scale=0.01, pool3_scale=0.0001)
    randomise_scores(network)
    plain = FCN(VGG16("pad100", 8, width=1 / 16), 3)
    state = dict(network.state_dict())
    state["score_pool4.weight"] = state["score_pool4.weight"] * 0.01
    state["score_pool3.weight"] = state["score_pool3.weight"] * 0.0001
    plain.load_state_dict(state)
    images = torch.rand(1, 3, 20, 33) * 255
    with torch.inference_mode():
        wanted = plain.eval()(images)
        torch.testing.assert_close(network.eval()(images), wanted, rtol=1e-3, atol=1e-3)
        plain.load_state_dict(network.state_dict())
        assert (plain(images) - wanted).abs().max() > 0.1, "the scales have an effect"
