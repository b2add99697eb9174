"""Shift-and-stitch equals a rarefied network, to the bit.

Weights and pixels are small whole numbers in float64: every sum is exact, whatever its order, so
that "the same" can mean equal.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from training.analysis.stitch import rarefied, rarefy, shift_and_stitch


def whole(network: nn.Sequential, seed: int) -> nn.Sequential:
    """Weights -3..3 in float64."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.double().parameters():
        values = torch.randint(-3, 4, parameter.shape, generator=generator)
        parameter.data.copy_(values)
    return network.eval()


def images(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 9, (2, 2, height, width), generator=generator).double()


def conv_pool(convs: int = 1) -> nn.Sequential:
    """Build a chain as VGG's: convolutions, a pooling, twice, then a wider convolution. Stride
    4."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *[layer for _ in range(convs) for layer in (nn.Conv2d(3, 3, 3), nn.ReLU())],
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2),
        nn.ReLU(),
        nn.Conv2d(4, 2, 1),
    )


def alexnet_like() -> nn.Sequential:
    """A strided convolution, overlapping pooling, groups, a dilated convolution. Stride 6."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 5, stride=3),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.Conv2d(4, 2, 2, dilation=2),
    )


@pytest.mark.parametrize(
    ("network", "stride"),
    [
        (conv_pool(), 4),
        (conv_pool(2), 4),
        (alexnet_like(), 6),
        (nn.Sequential(nn.Conv2d(2, 1, 3)), 1),
    ],
    ids=["conv-pool", "deeper", "alexnet-like", "stride-1"],
)
@pytest.mark.parametrize("size", [(40, 40), (41, 47)])
@torch.no_grad()
def test_the_two_ways_are_equal(network: nn.Sequential, stride: int, size: tuple[int, int]) -> None:
    network = whole(network, seed=sum(size))
    stitched = shift_and_stitch(network, images(*size), stride)
    dense = rarefied(network)(images(*size))
    assert stitched.shape == dense.shape
    assert torch.equal(stitched, dense)
    assert dense.unique().numel() > 5  # no map of zeros
    assert torch.equal(dense[:, :, ::stride, ::stride], network(images(*size)))


@torch.no_grad()
def test_without_dilation_they_differ() -> None:
    """Taking out the strides alone is not enough."""
    network = whole(conv_pool(), seed=1)
    lazy = rarefied(network)
    for layer in lazy:
        if isinstance(layer, nn.Conv2d):
            layer.dilation = (1, 1)
    stitched = shift_and_stitch(network, images(40, 40), 4)
    height, width = stitched.shape[2:]
    assert not torch.equal(lazy(images(40, 40))[:, :, :height, :width], stitched)


def test_the_network_is_left_alone() -> None:
    network = conv_pool()
    rarefied(network)
    assert isinstance(network[2], nn.MaxPool2d)
    assert network[2].stride == 2
    assert isinstance(network[3], nn.Conv2d)
    assert network[3].dilation == (1, 1)


@pytest.mark.parametrize("stride", [1, 2, 5])
def test_rarefied_filter_is_dilation(stride: int) -> None:
    weight = torch.arange(1.0, 13).view(1, 2, 2, 3).double()
    image = images(16, 20)
    spread = rarefy(weight, stride)
    assert spread.shape == (1, 2, stride + 1, 2 * stride + 1)
    assert spread[0, 0, 0, ::stride].tolist() == [1, 2, 3]
    assert spread.sum() == weight.sum()
    dilated = functional.conv2d(image, weight, dilation=stride)
    assert torch.equal(functional.conv2d(image, spread), dilated)


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (nn.Conv2d(2, 2, 3, padding=1), r"1 pads by \(1, 1\)"),
        (nn.Conv2d(2, 2, 3, padding="same"), "1 pads by same"),
        (nn.MaxPool2d(2, padding=1), "1 pads by 1"),
        (nn.MaxPool2d(2, ceil_mode=True), "1 pools in ceil mode"),
        (nn.Conv2d(2, 2, 3, stride=(1, 2)), r"1: stride \(1, 2\) differs between the axes"),
        (nn.AvgPool2d(2), "1: cannot rarefy a AvgPool2d"),
    ],
)
def test_layers_that_cannot_be_rarefied(layer: nn.Module, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        rarefied(nn.Sequential(nn.ReLU(), layer))


def test_a_stride_above_the_networks_is_noticed() -> None:
    with pytest.raises(ValueError, match="is 8 the network's stride"):
        shift_and_stitch(conv_pool(), images(40, 40).float(), 8)


def test_strides_below_one_and_images_below_the_stride() -> None:
    with pytest.raises(ValueError, match="stride 0"):
        shift_and_stitch(conv_pool(), images(40, 40), 0)
    with pytest.raises(ValueError, match="stride 0"):
        rarefy(torch.ones(1, 1, 2, 2), 0)
    with pytest.raises(ValueError, match="an image of 3x40 has no 4 shifts"):
        shift_and_stitch(conv_pool(), images(3, 40), 4)
