"""FCN-32s, 16s and 8s over any backbone (Long, Shelhamer, Darrell 2015, section 4.2), and 4s, the
next step of the same kind."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from math import ceil
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbones.base import Backbone
from model.backbones.caffe import Truncation
from model.coordinates import PixelRange
from model.heads import Classes, head_sizes, label_map, layer_name
from model.network import SegmentationNetwork
from model.upsample import BilinearUpsample, Upsampling

__all__ = ["FCN", "AnyVariant", "FusedScore", "Variant", "label_map"]

Variant = Literal["32s", "16s", "8s", "4s"]
AnyVariant = Literal[Variant, Truncation]

_STRIDES: dict[AnyVariant, int] = {
    "32s": 32, "16s": 16, "8s": 8, "4s": 4, "pool5": 32, "pool4": 16, "pool3": 8,
}  # fmt: skip
"""Strides of the map that the last upsampling takes to the pixels."""

_SKIPS = (
    (16, "upscore2", "score_pool4"),
    (8, "upscore_pool4", "score_pool3"),
    (4, "upscore_pool3", "score_pool2"),
)
"""Strides of the pools, the layers that take the scores there, and those that score the pools."""

_HEAD_LAYERS = ("score_fr", *(layer for _stride, *layers in _SKIPS for layer in layers))


class FCN(SegmentationNetwork):
    """Turns float [N,3,H,W] RGB images in 0..255 into float [N,num_classes,H,W] logits.

    `classes`: how many; or by head, and then the logits of all heads follow one another, and each
    has all of the layers below for itself, named `score_fr_<head>` and so on. Channels other than
    RGB: what the backbone takes, see `Modality`.

    score_fr classifies the stride-32 map; 16s adds score_pool4, 8s also score_pool3, 4s also
    score_pool2, each after a twofold upsampling; one last upsampling by the remaining stride gives
    pixels. All upsampling is by fixed factors and all crops are top-left, so any size the backbone
    takes will do.

    `skip_channels` > 0 puts a 3x3 convolution of that many channels (with batch norm and ReLU)
    between a pool and its score layer; 0 is the paper's plain 1x1 score. `pool2_channels` are those
    of score_pool2, whose map has four times the cells of the next one; None takes `skip_channels`.

    The variants `pool5`, `pool4` and `pool3` score the last map of a backbone cut short there, and
    have no skips ([R] recalled from arXiv 1605.06211's ablation, not verified).

    `pool4_scale` and `pool3_scale` are fixed factors of the pools before they are scored; where all
    three strides are learned at once, the authors have 0.01 and 0.0001.
    Source: `voc-fcn8s-atonce/net.py` of shelhamer/fcn.berkeleyvision.org.

    Raises: ValueError if the backbone lacks a map of that stride.
    """

    # With an only head; the layers of several have their names at the end.
    score_fr: nn.Conv2d
    upscore2: BilinearUpsample
    score_pool4: nn.Module
    upscore_pool4: BilinearUpsample
    score_pool3: nn.Module
    upscore_pool3: BilinearUpsample
    score_pool2: nn.Module
    upscore: BilinearUpsample

    def __init__(
        self,
        backbone: Backbone,
        classes: Classes,
        variant: AnyVariant = "8s",
        upsampling: Upsampling = "fixed",
        skip_channels: int = 0,
        pool4_scale: float = 1.0,
        pool3_scale: float = 1.0,
        pool2_channels: int | None = None,
    ) -> None:
        super().__init__()
        _check_maps(backbone, variant)
        self.backbone = backbone
        self.variant: AnyVariant = variant
        self.heads = head_sizes(classes)
        self.pool4_scale, self.pool3_scale = pool4_scale, pool3_scale
        self.stride = _STRIDES[variant]
        self.skips = skips_of(variant)
        self.skip_channels = dict.fromkeys(self.skips, skip_channels)
        if 4 in self.skips and pool2_channels is not None:
            self.skip_channels[4] = pool2_channels
        for head, count in self.heads.items():
            for name, layer in self._layers(count, upsampling).items():
                self.add_module(layer_name(name, head), layer)
        self._add_upscore()

    def _layers(self, count: int, upsampling: Upsampling) -> dict[str, nn.Module]:
        """Makes the layers of one head of `count` classes, in the order in which they compute."""
        channels, odd = self.backbone.channels, self.backbone.crops.odd_kernels
        streams = self.backbone.streams
        layers: dict[str, nn.Module] = {"score_fr": _score(streams, channels[max(channels)], count)}
        for stride, upscore, pool_score in _SKIPS[: len(self.skips)]:
            layers[upscore] = BilinearUpsample(count, 2, upsampling, 4 - odd)
            layers[pool_score] = _skip(streams, channels[stride], self.skip_channels[stride], count)
        return layers

    def _add_upscore(self) -> None:
        """Adds the last upsampling, one for all heads: the paper's is fixed even where the inner
        ones are learned."""
        kernel = 2 * self.stride - self.backbone.crops.odd_kernels
        self.upscore = BilinearUpsample(self.num_classes, self.stride, "fixed", kernel)

    @property
    def crop(self) -> int:
        """Counts the rows and columns of the upsampled scores above and left of the image."""
        return self.backbone.crops.final[self.stride]

    def scores(self, images: Tensor) -> Tensor:
        """Computes float [N,num_classes,h,w], which the last upsampling takes to the pixels."""
        maps = self.backbone(images)
        scores = [self._scores(maps, head) for head in self.heads]
        return scores[0] if len(scores) == 1 else torch.cat(scores, dim=1)

    def _scores(self, maps: dict[int, Tensor], head: str) -> Tensor:
        def layer(name: str) -> nn.Module:
            return self.get_submodule(layer_name(name, head))

        crops, scales = self.backbone.crops, {16: self.pool4_scale, 8: self.pool3_scale}
        score: Tensor = layer("score_fr")(maps[max(maps)])
        for stride, upscore, pool_score in _SKIPS[: len(self.skips)]:
            skip = layer(pool_score)(_scaled(maps[stride], scales.get(stride, 1)))
            upsampled = layer(upscore)(score)
            score = _fuse(upsampled, crops.upsampled[stride], skip, crops.skips[stride])
        return score

    def to_pixels(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        if self.upscore.lowering == "phases":
            return self._in_order(self.upscore.phases(scores).flatten(1, 2), size)
        return self._cropped(self.upscore(scores), size)

    def to_labels(self, scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Take the arg max of the phases before the pixels are put in order: on labels, not on C
        scores."""
        if self.upscore.lowering != "phases":
            return super().to_labels(scores, size)
        phases = self.upscore.phases(scores)
        labels = self._in_order(label_map(phases), size)[:, 0]
        return labels, self._in_order(phases.flatten(1, 2), size)

    def _in_order(self, phases: Tensor, size: tuple[int, int]) -> Tensor:
        """Orders [N,C*f*f,h,w] as [N,C,H,W], cut to the image."""
        return self._cropped(functional.pixel_shuffle(phases, self.upscore.factor), size)

    def _cropped(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        (height, width), top = size, self.crop
        return pixels[:, :, top : top + height, top : top + width]

    @property
    def halo_px(self) -> int:
        """Computes it from receptive fields, crops and kernels, rounded up to whole pixels."""
        crops, maps = self.backbone.crops, self.backbone.maps
        seen = PixelRange.of(maps[max(maps)])
        for stride in self.skips:
            beside = PixelRange.of(maps[stride])
            beside = beside.conv(3, pad=1) if self.skip_channels[stride] else beside
            seen = seen.upsampled(2, 4 - crops.odd_kernels, crops.upsampled[stride])
            seen = seen.joined(beside.cropped(crops.skips[stride]))
        kernel = self.upscore.kernel_size
        seen = seen.upsampled(self.stride, kernel, self.crop)
        return max(0, ceil(-seen.first), ceil(seen.last))

    def score_layers(self) -> list[nn.Module]:
        return [layer for name, layer in self.named_children() if name.startswith("score_")]

    def only(self, head: str) -> FCN:
        part = copy.deepcopy(self)
        for other in self.heads:
            for name in _HEAD_LAYERS:
                layer = part._modules.pop(layer_name(name, other), None)
                if other == head and layer is not None:
                    part.add_module(name, layer)
        part.heads = {"": self.heads[head]}
        part._add_upscore()
        return part


def _check_maps(backbone: Backbone, variant: AnyVariant) -> None:
    cut = backbone.cut_after or "fc7"
    if variant in ("pool5", "pool4", "pool3"):
        if cut != variant:
            raise ValueError(f"variant {variant} needs a backbone cut after {variant}, not {cut}")
    elif backbone.cut_after:
        raise ValueError(f"the backbone is cut after {cut}: the variant must be {cut}")
    else:
        check_skips(backbone.name, variant, backbone.channels)


def skips_of(variant: AnyVariant) -> tuple[int, ...]:
    """List the strides of the maps that a variant adds to the coarsest, coarse to fine."""
    count = {"16s": 1, "8s": 2, "4s": 3}.get(variant, 0)
    return tuple(stride for stride, *_layers in _SKIPS[:count])


def check_skips(backbone: str, variant: AnyVariant, strides: Container[int]) -> None:
    """Refuse a variant for which a backbone lacks a map. Raises: ValueError."""
    lacking = [stride for stride in skips_of(variant) if stride not in strides]
    if lacking:
        able = [other for other in get_args(Variant) if all(s in strides for s in skips_of(other))]
        raise ValueError(
            f"{backbone} has no inner map of stride {lacking[0]} for a skip: its variant is "
            f"{' or '.join(able)}"
        )


def _scaled(pool: Tensor, scale: float) -> Tensor:
    return pool if scale == 1 else pool * scale


def _fuse(upsampled: Tensor, cut: int, skip: Tensor, skip_cut: int) -> Tensor:
    """Sum of the upsampled score and the skip's score over their common, top-left cropped area.

    In 'same' networks the upsampled map is the larger one and the skip decides the size; in the
    padded networks (`skip_cut` > 0) it is the other way round.
    """
    if skip_cut:
        height, width = upsampled.shape[2:]
        return upsampled + skip[:, :, skip_cut : skip_cut + height, skip_cut : skip_cut + width]
    height, width = skip.shape[2:]
    return upsampled[:, :, cut : cut + height, cut : cut + width] + skip


class FusedScore(nn.Module):
    """Averages the scores of two streams, whose maps lie one after the other in the channels.

    Source: `score_fused` in `nyud-fcn32s-color-hha/net.py` of shelhamer/fcn.berkeleyvision.org
    (arXiv 1411.4038, section 5, speaks of a sum).
    """

    def __init__(self, inputs: int, classes: int, streams: Sequence[str]) -> None:
        super().__init__()
        self.streams = tuple(streams)
        for name in self.streams:
            self.add_module(name, _plain_score(inputs // len(self.streams), classes))

    def forward(self, maps: Tensor) -> Tensor:
        parts = maps.chunk(len(self.streams), dim=1)
        scores = [
            self.get_submodule(name)(part) for name, part in zip(self.streams, parts, strict=True)
        ]
        return torch.stack(scores).mean(dim=0)


def _score(streams: Sequence[str], inputs: int, classes: int) -> nn.Module:
    if streams:
        return FusedScore(inputs, classes, streams)
    return _plain_score(inputs, classes)


def _plain_score(inputs: int, classes: int) -> nn.Conv2d:
    """Makes a 1x1 score layer, zero at the start as in the paper (random gave it nothing)."""
    layer = nn.Conv2d(inputs, classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _skip(streams: Sequence[str], inputs: int, channels: int, classes: int) -> nn.Module:
    if not channels:
        return _score(streams, inputs, classes)
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        _plain_score(channels, classes),
    )
