"""What a backbone gives to the FCN heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from model.coordinates import CropOffsets, fcn_crops, tile


class Features(NamedTuple):
    """float [N,C,h,w] maps; a backbone without an inner tap gives None for it."""

    pool3: Tensor | None
    """stride 8"""
    pool4: Tensor | None
    """stride 16"""
    fc7: Tensor
    """stride 32, or the last layer's of a net cut short: what score_fr classifies"""


class Backbone(nn.Module, ABC):
    """RGB images in 0..255 -> Features. Normalisation is the backbone's own business."""

    name: str
    pool3_channels: int = 0
    pool4_channels: int = 0
    """0: there is no such tap, so no skip from it."""
    fc7_channels: int
    cut_after: str | None = None
    """The last layer of a net cut short, which takes the place of fc7."""
    crops: CropOffsets
    min_side_px: int = 1
    max_side_px: int | None = None

    @abstractmethod
    def normalise(self, images: Tensor) -> Tensor:
        """float [N,3,H,W] RGB in 0..255 -> what the first layer was trained on."""

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """float [N,3,H,W] RGB in 0..255."""

    def pretrained_modules(self) -> list[nn.Module]:
        """Parts that start from ImageNet weights and so train at the backbone's rate."""
        return [self]


SAME_CROPS = fcn_crops(tile(8), tile(16), tile(32))
"""'same' networks: cell i at stride s covers pixels s*i .. s*i+s-1, so an upsampled map loses
half a factor (kernel 2f overhangs by f/2) at the top and left, and nothing else."""
