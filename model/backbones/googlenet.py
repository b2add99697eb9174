"""Defines GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842; "inception v1") as an FCN backbone.

As trained in Caffe: no batch norm, real 5x5 branches, normalisation across channels. The auxiliary
classifiers and the final 7x7 average pooling are gone (Long, Shelhamer, Darrell, arXiv 1411.4038,
section 4.1). A layer has its Caffe name with a dot for the slash: `inception_3a.5x5_reduce`.

The authors never released their FCN-GoogLeNet: its padding, and heads other than 32s, are ours.
Not torchvision's GoogLeNet, which has batch norm, and 3x3 in place of 5x5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbones.base import Backbone, BackboneSpec, Features
from model.backbones.caffe import (
    CAFFE_PADDING,
    Padding,
    initialise,
    local_response_norm,
    max_pool3,
    max_pool3_map,
    scaled,
)
from model.coordinates import IMAGE, CoordinateMap, fcn_crops
from model.preprocessing import PREPROCESSING, Preprocess
from model.weights.names import Names

if TYPE_CHECKING:
    from model.build import NetworkSpec

_STEM = (64, 64, 192)
"""Channels of conv1, conv2's reduction and conv2. Source: arXiv 1409.4842 table 1."""

_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Channels of 1x1, 3x3_reduce, 3x3, 5x5_reduce, 5x5, pool_proj. Source: as above."""

_POOL_BEFORE = ("3a", "4a", "5a")
DROPOUT = 0.4
"""Source: arXiv 1409.4842 section 5."""


def googlenet_maps(padding: Padding) -> dict[int, CoordinateMap]:
    """Compute where the cells of inception_3b, inception_4e and inception_5b lie, by stride.

    Their receptive fields are those of the widest branch, the 5x5. The paper's 907 pixels count
    the average pooling that its text discards; without it there are 715.
    """
    at = max_pool3_map(IMAGE.conv(7, stride=2, pad=_conv1_padding(padding)), padding)
    at = at.conv(3, pad=1)
    ends = {}
    for name in _INCEPTIONS:
        at = max_pool3_map(at, padding) if name in _POOL_BEFORE else at
        at = ends[name] = at.conv(5, pad=2)
    return {8: ends["3b"], 16: ends["4e"], 32: ends["5b"]}


class Inception(nn.Module):
    """Puts four branches side by side: [N,inputs,h,w] -> [N,1x1 + 3x3 + 5x5 + pool_proj,h,w]."""

    def __init__(self, inputs: int, channels: Sequence[int]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, proj = channels
        self.add_module("1x1", nn.Conv2d(inputs, one, 1))
        self.add_module("3x3_reduce", nn.Conv2d(inputs, reduce3, 1))
        self.add_module("3x3", nn.Conv2d(reduce3, three, 3, padding=1))
        self.add_module("5x5_reduce", nn.Conv2d(inputs, reduce5, 1))
        self.add_module("5x5", nn.Conv2d(reduce5, five, 5, padding=2))
        self.add_module("pool_proj", nn.Conv2d(inputs, proj, 1))
        self.outputs = one + three + five + proj

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.max_pool2d(x, 3, 1, padding=1)
        branches = (
            self._relu("1x1", x),
            self._relu("3x3", self._relu("3x3_reduce", x)),
            self._relu("5x5", self._relu("5x5_reduce", x)),
            self._relu("pool_proj", pooled),
        )
        return torch.cat(branches, dim=1)

    def _relu(self, name: str, x: Tensor) -> Tensor:
        return functional.relu(self.get_submodule(name)(x), inplace=True)


class GoogLeNet(Backbone):
    """Gives the maps of inception_3b (stride 8) and 4e (16), each the last of its stride, and of 5b
    (32) after dropout, in the place of fc7.

    `width`: factor of every layer's channels; 1 is GoogLeNet's own.

    Any size from 1x1 in both forms. For `pad100` that follows from pooling in ceil mode: with p
    rows in inception_5b, 32p >= H + 164, while FCN-32s needs 32p >= H + 67.
    """

    name = "googlenet"
    weights_preprocessing = "caffe"

    def __init__(
        self, padding: Padding = "same", dropout: float = DROPOUT, width: float = 1.0
    ) -> None:
        super().__init__()
        self.preprocess = Preprocess(PREPROCESSING["caffe"])
        self.padding: Padding = padding
        conv1, reduce2, conv2 = scaled(_STEM, width)
        self.conv1 = nn.ModuleDict({"7x7_s2": nn.Conv2d(3, conv1, 7, 2, _conv1_padding(padding))})
        self.conv2 = nn.ModuleDict({
            "3x3_reduce": nn.Conv2d(conv1, reduce2, 1),
            "3x3": nn.Conv2d(reduce2, conv2, 3, padding=1),
        })  # fmt: skip
        outputs = {}
        inputs = conv2
        for name, channels in _INCEPTIONS.items():
            inception = Inception(inputs, scaled(channels, width))
            self.add_module(f"inception_{name}", inception)
            inputs = outputs[name] = inception.outputs
        self.dropout = nn.Dropout(dropout)
        self.channels = {8: outputs["3b"], 16: outputs["4e"], 32: outputs["5b"]}
        self.maps = googlenet_maps(padding)
        self.crops = fcn_crops(self.maps)
        initialise(self)

    def forward(self, images: Tensor) -> Features:
        x = self.checkpointed(self._stem, self.preprocess(images))
        ends = {}
        for name in _INCEPTIONS:
            x = max_pool3(x, self.padding) if name in _POOL_BEFORE else x
            x = ends[name] = self.checkpointed(self.get_submodule(f"inception_{name}"), x)
        return {8: ends["3b"], 16: ends["4e"], 32: self.dropout(x)}

    def _stem(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1["7x7_s2"](x), inplace=True)
        x = local_response_norm(max_pool3(x, self.padding))
        for name in ("3x3_reduce", "3x3"):
            x = functional.relu(self.conv2[name](x), inplace=True)
        return local_response_norm(x)


def _conv1_padding(padding: Padding) -> int:
    return CAFFE_PADDING if padding == "pad100" else 3


def _build(spec: NetworkSpec) -> Backbone:
    return GoogLeNet(spec.padding, spec.dropout_or_default, spec.width)


_BRANCHES = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")
_LAYERS = [
    "conv1/7x7_s2",
    "conv2/3x3_reduce",
    "conv2/3x3",
    *(f"inception_{name}/{branch}" for name in _INCEPTIONS for branch in _BRANCHES),
]
_NAMES = Names(
    caffe={name: name.replace("/", ".") for name in _LAYERS},
    dropped=frozenset({
        *(f"loss{i}/{layer}" for i in (1, 2) for layer in ("conv", "fc", "classifier")),
        "loss3/classifier",
    }),
    foreign={
        "inception3a.branch1.conv": "it is torchvision's GoogLeNet, which is another network than "
        "the one that the paper and this project have: it pools before inception 5a over 2x2 "
        "pixels instead of 3x3, does not normalise across channels, and takes RGB in -1..1. Its "
        "3x3 kernels for 5x5 and its batch norms could be rewritten, those three differences not. "
        "Its weights cannot be used: take bvlc_googlenet.caffemodel"
    },
)  # fmt: skip
"""`loss1` and `loss2` are the auxiliary classifiers.

Source of the names: `models/bvlc_googlenet/train_val.prototxt` of BVLC/caffe; of the difference:
`torchvision/models/googlenet.py` of pytorch/vision.
"""

SPEC = BackboneSpec(
    name="googlenet",
    build=_build,
    taps={8: "inception_3b", 16: "inception_4e", 32: "inception_5b"},
    options=frozenset({"padding"}),
    dropout=DROPOUT,
    preprocessing=("caffe",),
    names=_NAMES,
)
