"""VGG16 (Simonyan and Zisserman, arXiv 1409.1556, configuration D) as an FCN backbone.

Its fully connected layers are convolutions, fc6 of 7x7 and fc7 of 1x1, and its classifier is
gone (Long, Shelhamer, Darrell, arXiv 1411.4038, section 3.1). Layers have their Caffe names.

`pad100` is the authors' net: conv1_1 pads by 100 pixels, fc6 by none, and crops bring the scores
back to the image. `same` has the same parameters, pads so that a map at stride s has
ceil(H/s) rows, and works on the image's own pixels: half the arithmetic at 500x500.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.backbones.base import Backbone, Features
from model.backbones.caffe import (
    CAFFE_MEAN,
    CAFFE_PADDING,
    Padding,
    Truncation,
    caffe_normalised,
    initialise,
)
from model.backbones.norms import Pair, make_identity
from model.coordinates import IMAGE, CoordinateMap, fcn_crops
from model.modality import CHANNEL_COUNTS, HHA_MEAN, LOG_DEPTH_MEAN, RGB, Modality
from model.weights.layers import Layer, LayerWeights

Normalisation = Literal["caffe", "torchvision", "nyudv2", "siftflow"]
"""What the first layer is given. `torchvision`: RGB in 0..1 less the mean, over the standard
deviation. The others: BGR in 0..255 less a mean: of ImageNet (`caffe`), or of the data set that the
net is trained on, as the authors have it for two; all of these take Caffe's weights."""

CONVS_PER_BLOCK = (2, 2, 3, 3, 3)
CHANNELS = (64, 128, 256, 512, 512)
FC_CHANNELS = 4096
"""Source: arXiv 1409.1556 table 1, configuration D."""

FC6_KERNEL = 7
"""Source: `voc-fcn8s/net.py` of shelhamer/fcn.berkeleyvision.org."""

_CONV1_1_BGRD = "conv1_1_bgrd"
"""Source: `nyud-fcn32s-color-d/net.py` of shelhamer/fcn.berkeleyvision.org."""

_BGR_MEANS: dict[Normalisation, tuple[float, float, float]] = {
    "nyudv2": (116.190, 97.203, 92.318),
    "siftflow": (114.578, 115.294, 108.353),
}
"""Source: `nyud_layers.py` and `siftflow_layers.py` of shelhamer/fcn.berkeleyvision.org."""

_TORCHVISION_MEAN = (0.485, 0.456, 0.406)
_TORCHVISION_STD = (0.229, 0.224, 0.225)
"""Source: torchvision, `VGG16_Weights.IMAGENET1K_V1.transforms` (of RGB in 0..1)."""


def vgg16_maps(padding: Padding) -> tuple[CoordinateMap, CoordinateMap, CoordinateMap]:
    """Where the cells of pool3, pool4 and fc7 lie."""
    pools = vgg16_pool_maps(padding)
    return pools[2], pools[3], pools[4].conv(FC6_KERNEL, pad=_fc6_padding(padding))


def vgg16_pool_maps(padding: Padding) -> list[CoordinateMap]:
    """Where the cells of pool1 to pool5 lie."""
    at = IMAGE
    pools = []
    for block, convs in enumerate(CONVS_PER_BLOCK):
        for index in range(convs):
            at = at.conv(3, pad=_conv_padding(padding) if block == index == 0 else 1)
        at = at.conv(2, stride=2)
        pools.append(at)
    return pools


class VGG16(Backbone):
    """Taps: pool3 (stride 8), pool4 (16), and fc7 (32) after dropout.

    `fc_channels`: of fc6 and fc7; 4096 are VGG's own and most of its 134 million parameters.
    `normalisation`: must fit the weights, see there. `modality`: of `rgb`, `rgbd` and `hha`. Depth
    is a fourth channel of the first layer, then named conv1_1_bgrd; HHA is less its own mean, in
    the place of BGR, and takes no torchvision weights (see `NetworkSpec`).
    `batch_norm`: one after each convolution of the five blocks, as torchvision's `vgg16_bn` has it;
    a net that is not trained from ImageNet weights learns little without.
    `channels`: of the five blocks. `cut_after`: a net that ends with that pool, which takes the
    place of fc7; it has no other tap.

    Any size from 1x1 in both forms. For `pad100` that follows from pooling in ceil mode: with p
    rows in pool5, 32p >= H + 198, while FCN-32s needs 32p >= H + 179, 16s H + 171, 8s H + 167.
    """

    name = "vgg16"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        padding: Padding = "same",
        fc_channels: int = FC_CHANNELS,
        normalisation: Normalisation = "caffe",
        dropout: float = 0.5,
        channels: Sequence[int] = CHANNELS,
        cut_after: Truncation | None = None,
        modality: Modality = RGB,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.cut_after, self.modality, self.batch_norm = cut_after, modality, batch_norm
        self.blocks = int(cut_after[-1]) if cut_after else len(CONVS_PER_BLOCK)
        inputs = CHANNEL_COUNTS[modality]
        for block, (convs, outputs) in enumerate(
            zip(CONVS_PER_BLOCK[: self.blocks], channels[: self.blocks], strict=True), start=1
        ):
            for index in range(1, convs + 1):
                pad = _conv_padding(padding) if block == index == 1 else 1
                layer = nn.Conv2d(inputs, outputs, 3, padding=pad)
                self.add_module(self._conv(block, index), layer)
                if batch_norm:
                    self.add_module(_norm(block, index), nn.BatchNorm2d(outputs))
                inputs = outputs
        if cut_after is None:
            self.fc6 = nn.Conv2d(inputs, fc_channels, FC6_KERNEL, padding=_fc6_padding(padding))
            self.fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
            # Of single values, as Caffe's; Dropout2d would drop whole maps.
            self.drop6, self.drop7 = nn.Dropout(dropout), nn.Dropout(dropout)
            self.pool3_channels, self.pool4_channels = channels[2], channels[3]
            self.fc7_channels = fc_channels
            self.crops = fcn_crops(*vgg16_maps(padding))
        else:
            self.fc7_channels = inputs
            self.crops = fcn_crops(None, None, vgg16_pool_maps(padding)[self.blocks - 1])
        self.normalisation: Normalisation = normalisation
        mean, std = _mean_and_std(normalisation, modality)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        initialise(self)

    def normalise(self, images: Tensor) -> Tensor:
        if self.modality == "hha":
            return images - self.mean
        if self.modality == "rgbd":
            color, log_depth = images[:, :3], images[:, 3:]
            return torch.cat(
                [caffe_normalised(color, self.mean), log_depth - LOG_DEPTH_MEAN], dim=1
            )
        if self.normalisation == "torchvision":
            return (images - self.mean) / self.std
        return caffe_normalised(images, self.mean)

    def forward(self, images: Tensor) -> Features:
        x = self.normalise(images)
        pools = []
        for block in range(1, self.blocks + 1):
            x = self.segment(partial(self._block, block), x)
            pools.append(x)
        if self.cut_after is not None:
            return Features(pool3=None, pool4=None, fc7=x)
        return Features(pool3=pools[2], pool4=pools[3], fc7=self.segment(self._fully_connected, x))

    def _block(self, block: int, x: Tensor) -> Tensor:
        for index in range(1, CONVS_PER_BLOCK[block - 1] + 1):
            x = self.get_submodule(self._conv(block, index))(x)
            if self.batch_norm:
                x = self.get_submodule(_norm(block, index))(x)
            x = functional.relu(x, inplace=True)
        return functional.max_pool2d(x, 2, 2, ceil_mode=True)

    def _fully_connected(self, x: Tensor) -> Tensor:
        x = self.drop6(functional.relu(self.fc6(x), inplace=True))
        dropped: Tensor = self.drop7(functional.relu(self.fc7(x), inplace=True))
        return dropped

    def _conv(self, block: int, index: int) -> str:
        first = block == index == 1
        return _CONV1_1_BGRD if first and self.modality == "rgbd" else f"conv{block}_{index}"

    @property
    def weights_pixels(self) -> str:
        return "torchvision" if self.normalisation == "torchvision" else "caffe"

    def start_layers(self, layers: LayerWeights) -> LayerWeights:
        """A depth filter begins as the mean of the colour filters beside it.

        Source: `nyud-fcn32s-color-d/solve.py` of shelhamer/fcn.berkeleyvision.org.
        """
        if self.modality != "rgbd" or "conv1_1" not in layers:
            return layers
        weight, bias = layers["conv1_1"].weight, layers["conv1_1"].bias
        depth = weight.mean(axis=1, keepdims=True)
        rest = {name: layer for name, layer in layers.items() if name != "conv1_1"}
        return {_CONV1_1_BGRD: Layer(np.concatenate([weight, depth], axis=1), bias), **rest}

    def load_imagenet(self, path: Path) -> None:
        """The norms become the identity; see `restore_norms`."""
        super().load_imagenet(path)
        for _, norm in self.norm_pairs():
            make_identity(norm)

    def norm_pairs(self) -> list[Pair]:
        if not self.batch_norm:
            return []
        found: list[Pair] = []
        for block in range(1, self.blocks + 1):
            for index in range(1, CONVS_PER_BLOCK[block - 1] + 1):
                conv = self.get_submodule(self._conv(block, index))
                norm = self.get_submodule(_norm(block, index))
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    found.append((conv, norm))
        return found

    def fold_norms(self) -> None:
        """Into the convolutions before them; the net is for inference from then on."""
        names = {module: name for name, module in self.named_children()}
        for conv, norm in self.norm_pairs():
            self.add_module(names[conv], fuse_conv_bn_eval(conv, norm))
            del self._modules[names[norm]]
        self.batch_norm = False

    def pretrained_modules(self) -> list[nn.Module]:
        """fc6 and fc7 are VGG's only at its own width."""
        new = () if self.fc7_channels == FC_CHANNELS else ("fc6", "fc7")
        return [module for name, module in self.named_children() if name not in new]


def _norm(block: int, index: int) -> str:
    return f"norm{block}_{index}"


def _conv_padding(padding: Padding) -> int:
    """Of conv1_1."""
    return CAFFE_PADDING if padding == "pad100" else 1


def _fc6_padding(padding: Padding) -> int:
    return 0 if padding == "pad100" else FC6_KERNEL // 2


def _mean_and_std(normalisation: Normalisation, modality: Modality) -> tuple[Tensor, Tensor]:
    """float32 [1,3,1,1], in units of 0..255, in the order of the image's channels."""
    std = torch.ones(3)
    if modality == "hha":
        mean = torch.tensor(HHA_MEAN)
    elif normalisation == "torchvision":
        mean, std = 255 * torch.tensor(_TORCHVISION_MEAN), 255 * torch.tensor(_TORCHVISION_STD)
    elif normalisation == "caffe":
        mean = torch.tensor(CAFFE_MEAN)
    else:
        mean = torch.tensor(_BGR_MEANS[normalisation]).flip(0)
    return mean.view(1, 3, 1, 1), std.view(1, 3, 1, 1)
