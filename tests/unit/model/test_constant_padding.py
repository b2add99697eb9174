"""The padding by 100 pixels, computed once: nothing of what a net gives may change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from model.backbones.caffe import CAFFE_PADDING, Padding
from model.backbones.vgg16 import VGG16

SIDES = [1, 2, 3, *range(33, 66)]
"""The smallest, and every remainder by 32."""


def pair(padding: Padding = "pad100") -> tuple[VGG16, VGG16]:
    torch.manual_seed(0)
    whole = VGG16(padding, 4, width=1 / 32).eval().double()
    for layer in whole.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias)  # so that padding is not zero behind the first layer
    folded = copy.deepcopy(whole)
    folded.fold_constant_padding()
    return whole, folded


@torch.inference_mode()
def test_every_map_is_the_same() -> None:
    whole, folded = pair()
    for height in SIDES:
        images = torch.rand(1, 3, height, 66 - height % 33, dtype=torch.double) * 255
        wanted, got = whole(images), folded(images)
        for stride, at in wanted.items():
            torch.testing.assert_close(got[stride], at, rtol=0, atol=1e-10 * float(at.abs().max()))


def test_most_of_the_padding_goes() -> None:
    whole, folded = pair()
    first = folded.get_submodule("conv1_1")
    assert isinstance(first, nn.Conv2d) and isinstance(first.padding, tuple)
    assert 0 < first.padding[0] < 20 < CAFFE_PADDING
    assert whole.get_submodule("conv1_1").padding == (CAFFE_PADDING,) * 2, "the original is kept"


@pytest.mark.parametrize("padding", ["same"])
def test_a_same_net_stays_as_it_is(padding: Padding) -> None:
    whole, folded = pair(padding)
    assert folded.get_submodule("conv1_1").padding == whole.get_submodule("conv1_1").padding
