"""Defines what heads take from a backbone, and what each backbone says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from model.backbones.norms import Pair, norm_pairs, restore
from model.backbones.recompute import recomputed
from model.coordinates import CoordinateMap, CropOffsets, fcn_crops, tile
from model.surgery import convolutions, transplant
from model.weights.layers import LayerWeights
from model.weights.names import Names
from model.weights.start import read_start_weights

if TYPE_CHECKING:
    from model.build import NetworkSpec

Features = dict[int, Tensor]
"""float [N,C,h,w] maps by their stride in pixels. The coarsest is what is classified first; finer
ones are for skips."""


@dataclass(frozen=True, slots=True)
class BackboneSpec:
    """Holds all that the rest of the project knows about one backbone before it is built.

    `taps`: the layers whose maps it gives, by stride. `options`: fields of `NetworkSpec` that it
    has beside those of every backbone: `fc6_channels`, `padding`, `preprocessing`, `modality`,
    `batch_norm`, `truncation`. `fc6_channels` and `dropout`: where a config leaves them out.
    `preprocessing`: what it can be fed, the default first. `norms`: whether it has batch norms.
    `names`: those of its layers in files of other programs. `check` raises ValueError for fields
    that do not go together.
    """

    name: str
    build: Callable[[NetworkSpec], Backbone]
    taps: Mapping[int, str]
    preprocessing: tuple[str, ...]
    names: Names
    dropout: float
    options: frozenset[str] = frozenset()
    fc6_channels: int | None = None
    fc6_is_needed: bool = False
    norms: Literal["always", "option", "never"] = "never"
    check: Callable[[NetworkSpec], None] = lambda spec: None


class Backbone(nn.Module, ABC):
    """Takes float [N,3,H,W] RGB images in 0..255 and gives `Features`."""

    name: str
    channels: Mapping[int, int]
    """channels of each map, by its stride"""
    maps: Mapping[int, CoordinateMap]
    """where the cells of each map lie, by its stride"""
    crops: CropOffsets
    preprocess: nn.Module
    """images -> what the first layer was trained on"""
    weights_preprocessing: str
    """the preprocessing with which its ImageNet weights were learned, as their file says it"""
    depthwise_layers: frozenset[str] = frozenset()
    """layers whose shapes in a file of start weights tell TensorFlow Lite's layout"""
    streams: tuple[str, ...] = ()
    """names of the nets side by side, whose maps lie one after the other in the channels; none
    where there is but one"""
    cut_after: str | None = None
    """the last layer of a net cut short"""
    recompute: bool = False
    """activation checkpointing of each `checkpointed` part"""
    min_side_px: int = 1
    max_side_px: int | None = None

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Compute the maps of float [N,3,H,W] RGB images in 0..255."""

    def checkpointed(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Compute function(x), a part of the forward pass that `recompute` applies to."""
        if self.recompute and self.training and torch.is_grad_enabled():
            return recomputed(self, function, x)
        return function(x)

    def pretrained_modules(self) -> list[nn.Module]:
        """List the parts that start from ImageNet weights and so train at the backbone's rate."""
        return [self]

    def norm_pairs(self) -> list[Pair]:
        """List the layers that `load_imagenet` fills and a batch norm follows."""
        pretrained = self._pretrained()
        return [pair for pair in norm_pairs(self) if id(pair.conv) in pretrained]

    def restore_norms(self, batches: Iterable[Tensor]) -> None:
        """Give each norm the mean and variance its convolution has on `batches`.

        Folded weights leave the norms trivial, and training them in that state starts with a
        jump. Scale and shift are set so that the layer's function stays what it was.
        `batches`: float [N,3,H,W] RGB in 0..255. Raises: ValueError if there are none.
        """
        restore(self, self.norm_pairs(), batches)

    def fold_constant_padding(self) -> None:
        """Compute once what a wide padding makes alike, for inference; values stay as they are."""

    def start_layers(self, layers: LayerWeights) -> LayerWeights:
        """Turn the ImageNet net's layers into this one's."""
        return layers

    def load_imagenet(self, path: Path) -> None:
        """Fill `pretrained_modules` from a file that `fcn import-weights` wrote.

        Norms become the identity, plus the bias where the convolution has none: see
        `restore_norms`. Raises: ValueError naming what does not fit; OSError if the file cannot be
        read.
        """
        layers = self.start_layers(
            read_start_weights(
                path,
                network=self.name,
                preprocessing=self.weights_preprocessing,
                depthwise=self.depthwise_layers,
            )
        )
        transplant(self, layers, self.start_paths(), source=str(path))

    def start_paths(self) -> dict[str, str]:
        """Map the layers of a file of start weights to the paths of their convolutions."""
        pretrained = self._pretrained()
        return {
            layer: path
            for layer, path in convolutions(self).items()
            if id(self.get_submodule(path)) in pretrained
        }

    def _pretrained(self) -> set[int]:
        return {id(part) for module in self.pretrained_modules() for part in module.modules()}


SAME_CROPS = fcn_crops({stride: tile(stride) for stride in (4, 8, 16, 32)})
"""'same' networks: cell i at stride s covers pixels s*i .. s*i+s-1, so an upsampled map loses
half a factor (kernel 2f overhangs by f/2) at the top and left, and nothing else."""
