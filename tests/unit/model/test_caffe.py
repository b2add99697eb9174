"""Caffe's layers, and CaffeNet put together from them by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbones.alexnet import AlexNet
from model.backbones.caffe import local_response_norm, max_pool3
from model.backbones.googlenet import GoogLeNet, Inception
from model.fcn import FCN


@pytest.mark.parametrize("channels", [1, 2, 5, 8])
def test_local_response_norm_is_torchs(channels: int) -> None:
    x = 100 * torch.randn(1, channels, 3, 4)
    wanted = functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)
    torch.testing.assert_close(local_response_norm(x), wanted)


def test_pooling_in_ceil_mode_and_in_the_same_form() -> None:
    row = torch.tensor([5.0, 1, 2, 4, 3, 9]).view(1, 1, 1, 6)
    tall = row.expand(1, 1, 3, 6)
    assert max_pool3(tall, "pad100").flatten().tolist() == [5, 4, 9]
    assert max_pool3(row, "same").flatten().tolist() == [5, 4, 9]
    assert max_pool3(row[..., :5], "same").flatten().tolist() == [5, 4, 4]


def test_groups_of_alexnet_do_not_see_each_other() -> None:
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in AlexNet().named_parameters() if p.ndim > 1}
    assert shapes["conv1.weight"] == (96, 3, 11, 11)
    assert shapes["conv2.weight"] == (256, 48, 5, 5)
    assert shapes["conv3.weight"] == (384, 256, 3, 3)
    assert shapes["conv4.weight"] == (384, 192, 3, 3)
    assert shapes["conv5.weight"] == (256, 192, 3, 3)
    net = AlexNet("same", 8, width=1 / 32)
    x = torch.rand(1, 4, 5, 5)
    changed = x.clone()
    changed[:, :2] += 1  # the first group's inputs
    difference = (net.conv2(changed) - net.conv2(x)).abs().amax(dim=(0, 2, 3))
    assert (difference[:4] > 0).all() and (difference[4:] == 0).all()


def caffe_alexnet(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """The authors' net layer by layer, with their numbers, for the same weights.

    Source: voc-fcn-alexnet/net.py of shelhamer/fcn.berkeleyvision.org; the crop's offset as in the
    prototxt it generates. Convolutions by group are two convolutions here.
    """

    def conv(name: str, x: Tensor, stride: int = 1, pad: int = 0, group: int = 1) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        parts = zip(x.chunk(group, 1), weight.chunk(group), bias.chunk(group), strict=True)
        return torch.cat([functional.conv2d(*p, stride=stride, padding=pad) for p in parts], 1)

    def pool_then_norm(x: Tensor) -> Tensor:
        x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        return functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    x = images.flip(1) - torch.tensor([104.00699, 116.66877, 122.67892]).view(1, 3, 1, 1)
    x = pool_then_norm(conv("backbone.conv1", x, stride=4, pad=100).relu())
    x = pool_then_norm(conv("backbone.conv2", x, pad=2, group=2).relu())
    x = conv("backbone.conv3", x, pad=1).relu()
    x = conv("backbone.conv4", x, pad=1, group=2).relu()
    x = conv("backbone.conv5", x, pad=1, group=2).relu()
    x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
    x = conv("backbone.fc7", conv("backbone.fc6", x).relu()).relu()
    score = conv("score_fr", x)
    row = 1 - (torch.arange(63) - 31).abs() / 32
    kernel = (row[:, None] * row[None, :]).expand(score.shape[1], 1, -1, -1)
    upscore = functional.conv_transpose2d(score, kernel, stride=32, groups=score.shape[1])
    height, width = images.shape[2:]
    return upscore[:, :, 18 : 18 + height, 18 : 18 + width]


@pytest.mark.parametrize("training", [False, True])
def test_pad100_is_the_authors_alexnet(training: bool) -> None:
    """The last upsampling is computed in another way in training."""
    torch.manual_seed(0)
    backbone = AlexNet("pad100", 8, dropout=0.0, width=1 / 32)
    network = FCN(backbone, 3, "32s").train(training)
    nn.init.normal_(network.score_fr.weight)
    for size in ((1, 1), (45, 90)):
        images = torch.rand(1, 3, *size) * 255
        with torch.inference_mode():
            got, wanted = network(images), caffe_alexnet(network.state_dict(), images)
        largest = float(wanted.abs().max())
        assert largest > 0.1
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4 * largest)


def test_an_inception_is_four_branches_side_by_side() -> None:
    torch.manual_seed(0)
    inception = Inception(5, (1, 2, 3, 4, 5, 6))
    weights = inception.state_dict()

    def conv(name: str, x: Tensor, pad: int = 0) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.conv2d(x, weight, bias, padding=pad).relu()

    x = torch.randn(1, 5, 6, 7)
    wanted = [
        conv("1x1", x),
        conv("3x3", conv("3x3_reduce", x), pad=1),
        conv("5x5", conv("5x5_reduce", x), pad=2),
        conv("pool_proj", functional.max_pool2d(x, 3, 1, 1)),
    ]
    with torch.inference_mode():
        got = inception(x)
    assert got.shape[1] == inception.outputs == 1 + 3 + 5 + 6
    torch.testing.assert_close(got, torch.cat(wanted, dim=1))


def test_googlenet_normalises_after_pool1_and_before_pool2() -> None:
    """Its order differs from CaffeNet's at conv2. Source: bvlc_googlenet of BVLC/caffe."""
    torch.manual_seed(0)
    net = GoogLeNet("pad100", width=1 / 16).eval()
    weights = net.state_dict()

    def conv(name: str, x: Tensor, stride: int = 1, pad: int = 0) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.conv2d(x, weight, bias, stride, pad).relu()

    def norm(x: Tensor) -> Tensor:
        return functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    images = torch.rand(1, 3, 30, 41) * 255
    x = images.flip(1) - torch.tensor([104.00699, 116.66877, 122.67892]).view(1, 3, 1, 1)
    x = norm(functional.max_pool2d(conv("conv1.7x7_s2", x, 2, 100), 3, 2, ceil_mode=True))
    x = norm(conv("conv2.3x3", conv("conv2.3x3_reduce", x), pad=1))
    with torch.inference_mode():
        for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
            if name.endswith("a"):
                x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
            x = net.get_submodule(f"inception_{name}")(x)
        got = net(images)[32]
    assert x.abs().max() > 0
    torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))
