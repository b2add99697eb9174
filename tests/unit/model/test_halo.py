"""How far a label looks: from receptive fields and crops, and by changing what is farther away."""

from __future__ import annotations

import pytest
import torch

from model.build import BACKBONES, NetworkSpec, build
from model.network import SegmentationNetwork

SPECS = [
    NetworkSpec("mobilenet_v1", "8s", skip_channels=4, fc6_channels=8, width=1 / 8),
    NetworkSpec("mobilenet_v1", "4s", fc6_channels=8, width=1 / 8),
    NetworkSpec("efficientnet_lite0", "16s", fc6_channels=0, width=1 / 8),
    NetworkSpec("efficientnet_lite0", "4s", skip_channels=4, fc6_channels=0, width=1 / 8),
    NetworkSpec("vgg16", "4s", padding="pad100", fc6_channels=8, width=1 / 32),
    NetworkSpec("vgg16", "8s", fc6_channels=8, width=1 / 32),
    NetworkSpec("vgg16", "16s", padding="pad100", fc6_channels=8, width=1 / 32),
    NetworkSpec("vgg16", "pool3", width=1 / 32),
    NetworkSpec("alexnet", "32s", padding="pad100", fc6_channels=4, width=1 / 32),
    NetworkSpec("googlenet", "32s", width=1 / 16),
]


def randomised(spec: NetworkSpec) -> SegmentationNetwork:
    torch.manual_seed(0)
    network = build(spec, 3).eval().double()
    for layer in network.score_layers():
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)  # zero at the start
    return network


def test_every_backbone_is_here() -> None:
    assert {spec.backbone for spec in SPECS} == set(BACKBONES)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.architecture)
def test_no_pixel_beyond_the_halo_counts(spec: NetworkSpec) -> None:
    """The derivative of the logits of a block of pixels, in an image so large that no edge is seen:
    it ends within the halo, and comes near it unless the last cells happen to add nothing."""
    network = randomised(spec)
    halo = network.halo_px
    assert halo is not None
    side = 2 * halo + 64
    middle = halo + 16
    images = (torch.rand(1, 3, side, 32, dtype=torch.double) * 255).requires_grad_()
    logits = network(images)
    logits[:, :, middle : middle + 32].sum().backward()
    assert images.grad is not None
    rows = images.grad.abs().amax(dim=(0, 1, 3)).nonzero().flatten()
    assert rows.min() >= middle - halo and rows.max() < middle + 32 + halo
    reached = max(middle - int(rows.min()), int(rows.max()) - middle - 31)
    assert reached > 0.6 * halo
