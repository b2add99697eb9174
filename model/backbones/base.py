"""What a backbone gives to the FCN heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.backbones.norms import Pair, restore
from model.backbones.recompute import recomputed
from model.coordinates import CropOffsets, fcn_crops, tile
from model.surgery import convolutions, transplant
from model.weights.layers import LayerWeights
from model.weights.start import read_start_weights


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
    streams: tuple[str, ...] = ()
    """Names of the nets side by side, whose maps lie one after the other in the channels; none
    where there is but one."""
    cut_after: str | None = None
    """The last layer of a net cut short, which takes the place of fc7."""
    crops: CropOffsets
    recompute: bool = False
    """Of each `segment`, keep for the gradient only the input and compute the rest again."""
    min_side_px: int = 1
    max_side_px: int | None = None

    @abstractmethod
    def normalise(self, images: Tensor) -> Tensor:
        """float [N,3,H,W] RGB in 0..255 -> what the first layer was trained on."""

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """float [N,3,H,W] RGB in 0..255."""

    def segment(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """function(x), a part of the forward pass that `recompute` applies to."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return recomputed(self, function, x)
        return function(x)

    def pretrained_modules(self) -> list[nn.Module]:
        """Parts that start from ImageNet weights and so train at the backbone's rate."""
        return [self]

    def norm_pairs(self) -> list[Pair]:
        """The batch norms of the layers that `load_imagenet` fills, with their convolutions."""
        return []

    def restore_norms(self, batches: Iterable[Tensor]) -> None:
        """Give each norm the mean and variance its convolution has on `batches`.

        Folded weights leave the norms trivial, and training them in that state starts with a
        jump. Scale and shift are set so that the layer's function stays what it was.
        `batches`: float [N,3,H,W] RGB in 0..255. Raises: ValueError if there are none.
        """
        restore(self, self.norm_pairs(), batches)

    @property
    def weights_pixels(self) -> str:
        """Of which pixels its ImageNet weights were learned, as the file says it."""
        return str(getattr(self, "normalisation", ""))

    def start_layers(self, layers: LayerWeights) -> LayerWeights:
        """The ImageNet net's layers as this one's."""
        return layers

    def load_imagenet(self, path: Path) -> None:
        """Fill `pretrained_modules` from a file that `fcn import-weights` wrote.

        Raises: ValueError naming what does not fit; OSError if the file cannot be read.
        """
        layers = self.start_layers(
            read_start_weights(path, network=self.name, normalisation=self.weights_pixels)
        )
        pretrained = {id(part) for module in self.pretrained_modules() for part in module.modules()}
        needed = {
            layer: module
            for layer, module in convolutions(self).items()
            if id(self.get_submodule(module)) in pretrained
        }
        transplant(self, layers, needed, source=str(path))


SAME_CROPS = fcn_crops(tile(8), tile(16), tile(32))
"""'same' networks: cell i at stride s covers pixels s*i .. s*i+s-1, so an upsampled map loses
half a factor (kernel 2f overhangs by f/2) at the top and left, and nothing else."""
