"""Defines VGG16 (Simonyan and Zisserman, arXiv 1409.1556, configuration D) as an FCN backbone.

Its fully connected layers are convolutions, fc6 of 7x7 and fc7 of 1x1, and its classifier is
gone (Long, Shelhamer, Darrell, arXiv 1411.4038, section 3.1). Layers have their Caffe names.

`pad100` is the authors' net: conv1_1 pads by 100 pixels, fc6 by none, and crops bring the scores
back to the image. `same` has the same parameters, pads so that a map at stride s has
ceil(H/s) rows, and works on the image's own pixels: half the arithmetic at 500x500.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbones.base import Backbone, BackboneSpec, Features
from model.backbones.caffe import (
    CAFFE_PADDING,
    TRUNCATIONS,
    Copies,
    Padding,
    Truncation,
    constant_padding,
    initialise,
    put_back,
    scaled,
)
from model.coordinates import IMAGE, CoordinateMap, fcn_crops
from model.modality import CHANNEL_COUNTS, HHA_MEAN, LOG_DEPTH_MEAN, RGB, Modality
from model.preprocessing import PREPROCESSING, Preprocess, Preprocessing
from model.weights.layers import Layer, LayerWeights
from model.weights.names import Names, Normed

if TYPE_CHECKING:
    from model.build import NetworkSpec

CONVS_PER_BLOCK = (2, 2, 3, 3, 3)
CHANNELS = (64, 128, 256, 512, 512)
FC_CHANNELS = 4096
"""Source: arXiv 1409.1556 table 1, configuration D."""

FC6_KERNEL = 7
"""Source: `voc-fcn8s/net.py` of shelhamer/fcn.berkeleyvision.org."""

_CONV1_1_BGRD = "conv1_1_bgrd"
"""Source: `nyud-fcn32s-color-d/net.py` of shelhamer/fcn.berkeleyvision.org."""


def vgg16_maps(padding: Padding) -> dict[int, CoordinateMap]:
    """Compute where the cells of pool2, pool3, pool4 and fc7 lie, by stride."""
    pools = vgg16_pool_maps(padding)
    fc7 = pools[4].conv(FC6_KERNEL, pad=_fc6_padding(padding))
    return {4: pools[1], 8: pools[2], 16: pools[3], 32: fc7}


def vgg16_pool_maps(padding: Padding) -> list[CoordinateMap]:
    """Compute where the cells of pool1 to pool5 lie on the image."""
    return _pool_maps(IMAGE.conv(3, pad=_conv_padding(padding)))


def _pool_maps(at: CoordinateMap) -> list[CoordinateMap]:
    """Compute where the cells of pool1 to pool5 lie. `at`: where those of conv1_1 do."""
    pools = []
    for block, convs in enumerate(CONVS_PER_BLOCK):
        for _ in range(convs - (block == 0)):
            at = at.conv(3, pad=1)
        at = at.conv(2, stride=2)
        pools.append(at)
    return pools


class VGG16(Backbone):
    """Gives the maps of pool2 (stride 4), pool3 (8), pool4 (16), and fc7 (32) after dropout.

    `fc_channels`: of fc6 and fc7; VGG's own are 4096, most of its 134 million parameters.
    `preprocessing`: must fit the weights. `modality`: of `rgb`, `rgbd` and `hha`. Depth is a fourth
    channel of the first layer, then named conv1_1_bgrd; HHA is less its own mean, in the place of
    BGR, and takes no torchvision weights.
    `batch_norm`: one after each convolution of the five blocks, as torchvision's `vgg16_bn` has it;
    a net that is not trained from ImageNet weights learns little without.
    `width`: a factor of the channels of the five blocks, and of fc6 and fc7 unless they are given.
    `cut_after`: a net that ends with that pool, its only tap.

    Any size from 1x1 in both forms. For `pad100` that follows from pooling in ceil mode: with p
    rows in pool5, 32p >= H + 198, while FCN-32s needs 32p >= H + 179, 16s H + 171, 8s H + 167,
    4s less.
    """

    name = "vgg16"

    def __init__(
        self,
        padding: Padding = "same",
        fc_channels: int | None = None,
        preprocessing: str = "caffe",
        dropout: float = 0.5,
        width: float = 1.0,
        cut_after: Truncation | None = None,
        modality: Modality = RGB,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.cut_after, self.modality, self.batch_norm = cut_after, modality, batch_norm
        self.blocks = int(cut_after[-1]) if cut_after else len(CONVS_PER_BLOCK)
        self.preprocess = _preprocess(preprocessing, modality)
        self.weights_preprocessing = "torchvision" if preprocessing == "torchvision" else "caffe"
        self._own_fc_channels = scaled([FC_CHANNELS], width)[0]
        self._copies: list[Copies] = []
        channels = scaled(CHANNELS[: self.blocks], width)
        inputs = CHANNEL_COUNTS[modality]
        for block, (convs, outputs) in enumerate(
            zip(CONVS_PER_BLOCK[: self.blocks], channels, strict=True), start=1
        ):
            for index in range(1, convs + 1):
                pad = _conv_padding(padding) if block == index == 1 else 1
                layer = nn.Conv2d(inputs, outputs, 3, padding=pad)
                self.add_module(self._conv(block, index), layer)
                if batch_norm:
                    self.add_module(_norm(block, index), nn.BatchNorm2d(outputs))
                inputs = outputs
        if cut_after is None:
            fc_channels = fc_channels or self._own_fc_channels
            self.fc6 = nn.Conv2d(inputs, fc_channels, FC6_KERNEL, padding=_fc6_padding(padding))
            self.fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
            # Of single values, as Caffe's; Dropout2d would drop whole maps.
            self.drop6, self.drop7 = nn.Dropout(dropout), nn.Dropout(dropout)
            inner = dict(zip((4, 8, 16), channels[1:4], strict=True))
            self.channels = {**inner, 32: fc_channels}
            self.maps = vgg16_maps(padding)
        else:
            stride = 2**self.blocks
            self.channels = {stride: inputs}
            self.maps = {stride: vgg16_pool_maps(padding)[self.blocks - 1]}
        self.crops = fcn_crops(self.maps)
        initialise(self)

    def fold_constant_padding(self) -> None:
        """Compute only once what the padding by 100 makes alike, for inference.

        It saves a fifth of the time at 500x375. Nothing is approximated.
        """
        conv1_1 = self.get_submodule(self._conv(1, 1))
        if not isinstance(conv1_1, nn.Conv2d) or conv1_1.padding != (CAFFE_PADDING,) * 2:
            return
        shrink, self._copies = constant_padding(_pool_maps(IMAGE)[: self.blocks])
        conv1_1.padding = (CAFFE_PADDING - shrink,) * 2

    def forward(self, images: Tensor) -> Features:
        x = self.preprocess(images)
        pools = {}
        for block in range(1, self.blocks + 1):
            x = self.checkpointed(partial(self._block, block), x)
            pools[2**block] = x
            if block <= len(self._copies):
                copies = self._copies[block - 1]
                pools[2**block] = put_back(x, copies, copies.whole)
                x = put_back(x, copies, copies.more)
        if self.cut_after is not None:
            return {2**self.blocks: x}
        inner = {stride: pools[stride] for stride in (4, 8, 16)}
        return {**inner, 32: self.checkpointed(self._fully_connected, x)}

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

    def start_layers(self, layers: LayerWeights) -> LayerWeights:
        """Begin a depth filter as the mean of the colour filters beside it.

        Source: `nyud-fcn32s-color-d/solve.py` of shelhamer/fcn.berkeleyvision.org.
        """
        if self.modality != "rgbd" or "conv1_1" not in layers:
            return layers
        weight, bias = layers["conv1_1"].weight, layers["conv1_1"].bias
        depth = weight.mean(axis=1, keepdims=True)
        rest = {name: layer for name, layer in layers.items() if name != "conv1_1"}
        return {_CONV1_1_BGRD: Layer(np.concatenate([weight, depth], axis=1), bias), **rest}

    def pretrained_modules(self) -> list[nn.Module]:
        """List all layers but fc6 and fc7 where these do not have VGG's own width."""
        new = () if self.channels.get(32) == self._own_fc_channels else ("fc6", "fc7")
        return [module for name, module in self.named_children() if name not in new]


def _norm(block: int, index: int) -> str:
    return f"norm{block}_{index}"


def _conv_padding(padding: Padding) -> int:
    """Give the padding of conv1_1."""
    return CAFFE_PADDING if padding == "pad100" else 1


def _fc6_padding(padding: Padding) -> int:
    return 0 if padding == "pad100" else FC6_KERNEL // 2


class _Rgbd(nn.Module):
    """Turns RGB and the logarithm of depth into BGR and depth, both less their means."""

    def __init__(self, color: nn.Module) -> None:
        super().__init__()
        self.color = color

    def forward(self, images: Tensor) -> Tensor:
        color, log_depth = images[:, :3], images[:, 3:]
        return torch.cat([self.color(color), log_depth - LOG_DEPTH_MEAN], dim=1)


def _preprocess(preprocessing: str, modality: Modality) -> nn.Module:
    if modality == "hha":
        return Preprocess(Preprocessing(HHA_MEAN))
    color = Preprocess(PREPROCESSING[preprocessing])
    return _Rgbd(color) if modality == "rgbd" else color


def _build(spec: NetworkSpec) -> Backbone:
    return VGG16(
        padding=spec.padding,
        fc_channels=spec.fc6_channels_or_default,
        preprocessing=spec.preprocessing_or_default,
        dropout=spec.dropout_or_default,
        width=spec.width,
        cut_after=next((cut for cut in TRUNCATIONS if cut == spec.variant), None),
        modality=spec.modality,
        batch_norm=spec.batch_norm,
    )


def _check(spec: NetworkSpec) -> None:
    if spec.batch_norm and spec.modality != RGB:
        raise ValueError("batch_norm is for modality rgb")
    if spec.modality != RGB and spec.preprocessing == "torchvision":
        raise ValueError(
            f"modality {spec.modality} takes weights in BGR: preprocessing must not be torchvision"
        )
    if spec.variant in TRUNCATIONS:
        if spec.modality == "rgb-hha":
            raise ValueError(f"modality rgb-hha is for whole nets, not variant {spec.variant}")
        if spec.fc6_channels is not None or spec.dropout is not None:
            raise ValueError(
                f"variant {spec.variant} ends before fc6: leave fc6_channels and dropout out"
            )


_CONVS = [(block, i) for block, n in enumerate(CONVS_PER_BLOCK, 1) for i in range(1, n + 1)]
_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Where the convolutions are in torchvision's `vgg16().features`, between ReLUs and poolings."""
_BN_FEATURES = (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)
"""Their places in `vgg16_bn().features`, where a norm follows each."""


def _torchvision(features: tuple[int, ...]) -> dict[str, str]:
    convs = zip(features, _CONVS, strict=True)
    return {f"features.{at}": f"conv{block}_{i}" for at, (block, i) in convs} | {
        "classifier.0": "fc6",
        "classifier.3": "fc7",
        "classifier.6": "fc8",
    }


SPEC = BackboneSpec(
    name="vgg16",
    build=_build,
    taps={4: "pool2", 8: "pool3", 16: "pool4", 32: "fc7"},
    options=frozenset(
        {"fc6_channels", "padding", "preprocessing", "modality", "batch_norm", "truncation"}
    ),
    dropout=0.5,
    fc6_channels=FC_CHANNELS,
    fc6_is_needed=True,
    norms="option",
    preprocessing=("caffe", "torchvision", "nyudv2", "siftflow"),
    names=Names(
        torchvision=_torchvision(_FEATURES),
        keras={f"block{block}_conv{i}": f"conv{block}_{i}" for block, i in _CONVS}
        | {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"},
        dropped=frozenset({"fc8"}),
        normed={
            "torchvision": Normed(
                _torchvision(_BN_FEATURES),
                {f"features.{at + 1}": f"features.{at}" for at in _BN_FEATURES},
                eps=1e-5,
            )
        },
    ),
    check=_check,
)
"""The norms' eps is that of `torch.nn.BatchNorm2d`."""
