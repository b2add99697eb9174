"""The heads over MobileNetV1, whose maps are as they would be for any 'same' backbone.

For VGG16, and for the padded geometry, see test_vgg16.py.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from model.backbones.base import SAME_CROPS, Backbone, Features
from model.backbones.mobilenet_v1 import MobileNetV1
from model.coordinates import tile
from model.fcn import FCN, Variant, label_map
from model.upsample import Upsampling

VARIANTS: tuple[Variant, ...] = get_args(Variant)


class MeanPools(Backbone):
    """Features are means of the image's tiles: a backbone whose right answers are plain."""

    name = "mean_pools"
    crops = SAME_CROPS

    def __init__(self) -> None:
        super().__init__()
        self.channels = {4: 3, 8: 3, 16: 3, 32: 3}
        self.maps = {stride: tile(stride) for stride in self.channels}

    def forward(self, images: Tensor) -> Features:
        return {
            stride: nn.functional.avg_pool2d(images, stride, ceil_mode=True)
            for stride in self.channels
        }


def identity_scores(network: FCN, **gains: float) -> None:
    """Each named score layer becomes `gain` times the identity; the others stay zero."""
    for name, gain in gains.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        with torch.no_grad():
            layer.weight.copy_(gain * torch.eye(3)[:, :, None, None])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("upsampling", get_args(Upsampling))
def test_every_size_up_to_two_periods(variant: Variant, upsampling: Upsampling) -> None:
    network = FCN(MeanPools(), 3, variant, upsampling).eval()
    with torch.inference_mode():
        wrong = [
            (height, width)
            for height in range(1, 66)
            for width in (1, 66 - height)
            if network(torch.zeros(1, 3, height, width)).shape[2:] != (height, width)
        ]
    assert wrong == []


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("training", [True, False])
def test_upsampling_puts_a_ramp_back_where_it_was(variant: Variant, training: bool) -> None:
    """The means of a ramp's tiles, upsampled and cropped, are the ramp again, to the pixel."""
    network = FCN(MeanPools(), 3, variant).train(training)
    rows = torch.arange(256.0).view(1, 1, 256, 1)
    columns = torch.arange(224.0).view(1, 1, 1, 224)
    ramp = (rows + 3 * columns).expand(1, 3, 256, 224)
    identity_scores(network, score_fr=1.0)
    with torch.no_grad():
        got = network(ramp)
    inner = (..., slice(64, -64), slice(64, -64))
    torch.testing.assert_close(got[inner], ramp[inner], rtol=0, atol=0.01)


def test_each_score_layer_adds_its_own_part() -> None:
    network = FCN(MeanPools(), 3, "4s").eval()
    ramp = torch.arange(256.0).view(1, 1, 256, 1).expand(1, 3, 256, 256)
    identity_scores(network, score_fr=1.0, score_pool4=10.0, score_pool3=100.0, score_pool2=1000.0)
    with torch.no_grad():
        got = network(ramp)
    inner = (..., slice(64, -64), slice(64, -64))
    torch.testing.assert_close(got[inner], 1111 * ramp[inner], rtol=1e-4, atol=0.1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_start_at_zero(variant: Variant) -> None:
    with torch.inference_mode():
        logits = FCN(MobileNetV1(fc6_channels=4), 5, variant).eval()(torch.rand(1, 3, 40, 40) * 255)
    assert not logits.any()


def test_only_the_variants_own_layers_exist() -> None:
    heads = {
        variant: {name for name, _ in FCN(MeanPools(), 3, variant).named_children()}
        for variant in VARIANTS
    }
    assert heads["32s"] == {"backbone", "score_fr", "upscore"}
    assert heads["16s"] - heads["32s"] == {"upscore2", "score_pool4"}
    assert heads["8s"] - heads["16s"] == {"upscore_pool4", "score_pool3"}
    assert heads["4s"] - heads["8s"] == {"upscore_pool3", "score_pool2"}


def test_skip_channels_put_a_convolution_before_the_score() -> None:
    network = FCN(MeanPools(), 4, "4s", skip_channels=6)
    for skip in (network.score_pool4, network.score_pool3, network.score_pool2):
        assert isinstance(skip, nn.Sequential)
        first, score = skip[0], skip[-1]
        assert isinstance(first, nn.Conv2d) and isinstance(score, nn.Conv2d)
        assert first.weight.shape == (6, 3, 3, 3)
        assert score.weight.shape == (4, 6, 1, 1) and not score.weight.any()
    with torch.inference_mode():
        assert network.eval()(torch.zeros(2, 3, 9, 50)).shape == (2, 4, 9, 50)
    own = FCN(MeanPools(), 4, "4s", skip_channels=6, pool2_channels=0)
    assert isinstance(own.score_pool2, nn.Conv2d) and isinstance(own.score_pool3, nn.Sequential)


def test_every_parameter_learns() -> None:
    """From the second step on: a zero score layer passes nothing back in the first."""
    torch.manual_seed(0)
    network = FCN(MobileNetV1(fc6_channels=4), 3, "4s", "learned", skip_channels=4).train()
    for name, layer in network.named_modules():
        if name.startswith("score") and isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight)
    network(torch.rand(2, 3, 64, 64) * 255).square().mean().backward()
    idle = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert idle == []


def test_label_map_is_the_largest_logit_as_uint8() -> None:
    logits = torch.randn(2, 255, 3, 4)
    logits[1, 254, 2, 3] = 100
    labels = label_map(logits)
    assert labels.dtype == torch.uint8 and labels.shape == (2, 3, 4)
    assert labels[1, 2, 3] == 254
    picked = logits.gather(1, labels.long()[:, None])[:, 0]
    assert torch.equal(picked, logits.amax(dim=1))
