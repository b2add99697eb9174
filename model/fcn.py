"""FCN-32s, FCN-16s and FCN-8s over any backbone (Long, Shelhamer, Darrell 2015, section 4.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from model.backbones.base import Backbone
from model.backbones.caffe import Truncation
from model.upsample import BilinearUpsample, Upsampling

Variant = Literal["32s", "16s", "8s"]
AnyVariant = Literal[Variant, Truncation]

_STRIDES: dict[AnyVariant, int] = {
    "32s": 32, "16s": 16, "8s": 8, "pool5": 32, "pool4": 16, "pool3": 8,
}  # fmt: skip
"""Of the map that the last upsampling takes to the pixels."""


class FCN(nn.Module):
    """float [N,3,H,W] RGB images in 0..255 -> float [N,num_classes,H,W] logits.

    score_fr classifies the stride-32 map; 16s adds score_pool4, 8s also score_pool3, each after
    a twofold upsampling; one last upsampling by the remaining stride gives pixels. All upsampling
    is by fixed factors and all crops are top-left, so any size the backbone takes will do.

    `skip_channels` > 0 puts a 3x3 convolution of that many channels (with batch norm and ReLU)
    between a pool and its score layer; 0 is the paper's plain 1x1 score.

    The variants `pool5`, `pool4` and `pool3` score the last map of a backbone cut short there, and
    have no skips ([R] recalled from arXiv 1605.06211's ablation, not verified).

    `pool4_scale` and `pool3_scale` are fixed factors of the pools before they are scored; where all
    three strides are learned at once, the authors have 0.01 and 0.0001.
    Source: `voc-fcn8s-atonce/net.py` of shelhamer/fcn.berkeleyvision.org.

    Raises: ValueError if the backbone lacks a map of that stride.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        variant: AnyVariant = "8s",
        upsampling: Upsampling = "fixed",
        skip_channels: int = 0,
        pool4_scale: float = 1.0,
        pool3_scale: float = 1.0,
    ) -> None:
        super().__init__()
        _check_maps(backbone, variant)
        self.backbone = backbone
        self.variant: AnyVariant = variant
        self.num_classes = num_classes
        self.pool4_scale, self.pool3_scale = pool4_scale, pool3_scale
        odd = backbone.crops.odd_kernels
        # The last upsampling is fixed in the paper even where the inner ones are learned.
        self.score_fr = _score(backbone.fc7_channels, num_classes)
        self.stride = _STRIDES[variant]
        self.skips = {"16s": 1, "8s": 2}.get(variant, 0)
        if self.skips >= 1:
            self.upscore2 = BilinearUpsample(num_classes, 2, upsampling, 4 - odd)
            self.score_pool4 = _skip(backbone.pool4_channels, skip_channels, num_classes)
        if self.skips >= 2:
            self.upscore_pool4 = BilinearUpsample(num_classes, 2, upsampling, 4 - odd)
            self.score_pool3 = _skip(backbone.pool3_channels, skip_channels, num_classes)
        self.upscore = BilinearUpsample(num_classes, self.stride, "fixed", 2 * self.stride - odd)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        offset = self.crop
        full: Tensor = self.upscore(self.scores(images))
        return full[:, :, offset : offset + height, offset : offset + width]

    @property
    def crop(self) -> int:
        """Rows and columns that the upsampled scores have above and left of the image."""
        return self.backbone.crops.final[self.stride]

    def scores(self, images: Tensor) -> Tensor:
        """float [N,num_classes,h,w]: what the last upsampling takes to the pixels."""
        crops = self.backbone.crops
        features = self.backbone(images)
        score: Tensor = self.score_fr(features.fc7)
        if self.skips >= 1:
            skip = self.score_pool4(_scaled(features.pool4, self.pool4_scale))
            score = _fuse(self.upscore2(score), crops.upscore2, skip, crops.pool4)
        if self.skips >= 2:
            skip = self.score_pool3(_scaled(features.pool3, self.pool3_scale))
            score = _fuse(self.upscore_pool4(score), crops.upscore_pool4, skip, crops.pool3)
        return score


def _check_maps(backbone: Backbone, variant: AnyVariant) -> None:
    cut = backbone.cut_after or "fc7"
    if variant in ("pool5", "pool4", "pool3"):
        if cut != variant:
            raise ValueError(f"variant {variant} needs a backbone cut after {variant}, not {cut}")
    elif backbone.cut_after:
        raise ValueError(f"the backbone is cut after {cut}: the variant must be {cut}")
    elif variant != "32s" and not backbone.pool4_channels:
        raise ValueError(f"{backbone.name} has no inner maps for skips: its variant is 32s only")


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


def _score(inputs: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 score layer, zero at the start as in the paper (random gave it nothing)."""
    layer = nn.Conv2d(inputs, num_classes, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _skip(inputs: int, channels: int, num_classes: int) -> nn.Module:
    if not channels:
        return _score(inputs, num_classes)
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        _score(channels, num_classes),
    )


def label_map(logits: Tensor) -> Tensor:
    """float [N,C,...] -> uint8 [N,...] class ids."""
    return logits.argmax(dim=1).to(torch.uint8)
