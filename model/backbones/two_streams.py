"""Runs two nets side by side, one for colour and one for HHA: late fusion.

Nothing passes between them; what they see meets in the score layers, see `model.fcn.FusedScore`.
Source: arXiv 1411.4038, section 5; `nyud-fcn32s-color-hha/net.py` of
shelhamer/fcn.berkeleyvision.org.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from model.backbones.base import Backbone, Features


class TwoStreams(Backbone):
    """Takes float [N,6,H,W], RGB then HHA, and gives the maps of both nets.

    In the channels of each map those of `color` come before those of `hha`.

    The streams are two nets of the same kind. Neither may be cut short.
    """

    streams = ("color", "hha")

    def __init__(self, color: Backbone, hha: Backbone) -> None:
        super().__init__()
        self.color, self.hha = color, hha
        self.name, self.crops, self.maps = color.name, color.crops, color.maps
        self.channels = {
            stride: count + hha.channels[stride] for stride, count in color.channels.items()
        }
        self.preprocess = _Streams(color.preprocess, hha.preprocess)
        self.weights_preprocessing = color.weights_preprocessing
        self.min_side_px, self.max_side_px = color.min_side_px, color.max_side_px

    def forward(self, images: Tensor) -> Features:
        self.color.recompute = self.hha.recompute = self.recompute
        color, hha = self.color(images[:, :3]), self.hha(images[:, 3:])
        return {stride: torch.cat([maps, hha[stride]], dim=1) for stride, maps in color.items()}

    def pretrained_modules(self) -> list[nn.Module]:
        return [*self.color.pretrained_modules(), *self.hha.pretrained_modules()]

    def load_imagenet(self, path: Path) -> None:
        """Fill both from the same file, as each of them starts when it is trained alone."""
        self.color.load_imagenet(path)
        self.hha.load_imagenet(path)


class _Streams(nn.Module):
    """Turns the six channels into what the two nets take, side by side."""

    def __init__(self, color: nn.Module, hha: nn.Module) -> None:
        super().__init__()
        self.color, self.hha = color, hha

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.color(images[:, :3]), self.hha(images[:, 3:])], dim=1)
