"""Defines what training and export ask of a segmentation network, whatever its head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from model.backbones.base import Backbone
from model.heads import label_map

if TYPE_CHECKING:
    from model.build import NetworkSpec


class SegmentationNetwork(nn.Module, ABC):
    """Takes float [N,3,H,W] RGB images in 0..255 and gives float [N,num_classes,H,W] logits.

    A head is one file with a class like this. `heads`: classes by name, an only one is named "";
    the logits of several follow one another. `spec`: what it was built from, if by `build`.
    """

    backbone: Backbone
    heads: dict[str, int]
    spec: NetworkSpec | None = None

    @property
    def num_classes(self) -> int:
        """Count the classes of all heads together."""
        return sum(self.heads.values())

    @abstractmethod
    def scores(self, images: Tensor) -> Tensor:
        """Compute coarse scores, float [N,num_classes,h,w], of which `to_pixels` makes logits."""

    @abstractmethod
    def to_pixels(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn coarse scores into the logits of an image of `size`, (height, width)."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return self.to_pixels(self.scores(images), (height, width))

    def to_labels(self, scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Turn coarse scores of an only head into class ids, uint8 [N,H,W], and the logits."""
        logits = self.to_pixels(scores, size)
        return label_map(logits), logits

    @abstractmethod
    def score_layers(self) -> list[nn.Module]:
        """List the layers that are new for each set of classes."""

    @abstractmethod
    def only(self, head: str) -> Self:
        """Copy the network with this one of its heads, whose layers then have the plain names."""

    @property
    def halo_px(self) -> int | None:
        """Tell how far along either axis a pixel's label may depend on others; None: on all."""
        return None
