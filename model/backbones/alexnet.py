"""Defines AlexNet (Krizhevsky et al. 2012) as CaffeNet, the form the FCN authors used.

CaffeNet pools before it normalises across channels; conv2, conv4 and conv5 are in two groups. The
fully connected layers are convolutions, fc6 of 6x6 and fc7 of 1x1, and the classifier is gone
(Long, Shelhamer, Darrell, arXiv 1411.4038, section 4.1). Layers have their Caffe names.

Not torchvision's AlexNet, which is another one: 64 first channels, no groups, no normalisation.
Source of every number: `voc-fcn-alexnet/net.py` of shelhamer/fcn.berkeleyvision.org.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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

CHANNELS = (96, 256, 384, 384, 256)
FC_CHANNELS = 4096

_KERNELS = (11, 5, 3, 3, 3)
_GROUPS = (1, 2, 1, 2, 2)
_CONV1_STRIDE = 4
_FC6_KERNEL = 6


def alexnet_map(padding: Padding) -> CoordinateMap:
    """Compute where the cells of fc7 lie: on pixels, not between them, which makes the last
    deconvolution's kernel 63 and not 64."""
    at = IMAGE.conv(_KERNELS[0], stride=_CONV1_STRIDE, pad=_conv1_padding(padding))
    at = max_pool3_map(at, padding).conv(5, pad=2)
    at = max_pool3_map(at, padding).conv(3, pad=1).conv(3, pad=1).conv(3, pad=1)
    return max_pool3_map(at, padding).conv(_FC6_KERNEL, pad=_fc6_padding(padding)[0])


class AlexNet(Backbone):
    """Gives fc7 (stride 32) after dropout, and no inner maps, as the paper gives it no skips.

    `fc_channels`: of fc6 and fc7. `width`: a factor of the channels of conv1 to conv5.

    Any size from 1x1 in both forms. For `pad100` that follows from pooling in ceil mode: with p
    rows in pool5, 32p >= H + 162, while FCN-32s needs 32p >= H + 147.
    """

    name = "alexnet"
    weights_preprocessing = "caffe"

    def __init__(
        self,
        padding: Padding = "same",
        fc_channels: int | None = None,
        dropout: float = 0.5,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        self.preprocess = Preprocess(PREPROCESSING["caffe"])
        conv1, conv2, conv3, conv4, conv5 = scaled(CHANNELS, width, multiple=2)
        k1, k2, k3, k4, k5 = _KERNELS
        g1, g2, g3, g4, g5 = _GROUPS
        self.padding: Padding = padding
        self._own_fc_channels = scaled([FC_CHANNELS], width)[0]
        fc_channels = fc_channels or self._own_fc_channels
        self.conv1 = nn.Conv2d(3, conv1, k1, _CONV1_STRIDE, _conv1_padding(padding), groups=g1)
        self.conv2 = nn.Conv2d(conv1, conv2, k2, padding=2, groups=g2)
        self.conv3 = nn.Conv2d(conv2, conv3, k3, padding=1, groups=g3)
        self.conv4 = nn.Conv2d(conv3, conv4, k4, padding=1, groups=g4)
        self.conv5 = nn.Conv2d(conv4, conv5, k5, padding=1, groups=g5)
        self.fc6 = nn.Conv2d(conv5, fc_channels, _FC6_KERNEL)
        self.fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
        self.drop6, self.drop7 = nn.Dropout(dropout), nn.Dropout(dropout)
        self.channels, self.maps = {32: fc_channels}, {32: alexnet_map(padding)}
        self.crops = fcn_crops(self.maps)
        initialise(self)

    def forward(self, images: Tensor) -> Features:
        x = self.preprocess(images)
        for part in (self._stem, self._middle, self._fully_connected):
            x = self.checkpointed(part, x)
        return {32: x}

    def _stem(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv1(x), inplace=True)
        return local_response_norm(max_pool3(x, self.padding))

    def _middle(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv2(x), inplace=True)
        x = local_response_norm(max_pool3(x, self.padding))
        for conv in (self.conv3, self.conv4, self.conv5):
            x = functional.relu(conv(x), inplace=True)
        return max_pool3(x, self.padding)

    def _fully_connected(self, x: Tensor) -> Tensor:
        before, after = _fc6_padding(self.padding)
        x = functional.pad(x, (before, after, before, after))
        x = self.drop6(functional.relu(self.fc6(x), inplace=True))
        dropped: Tensor = self.drop7(functional.relu(self.fc7(x), inplace=True))
        return dropped

    def pretrained_modules(self) -> list[nn.Module]:
        """List all layers but fc6 and fc7 where these do not have CaffeNet's own width."""
        new = () if self.channels[32] == self._own_fc_channels else ("fc6", "fc7")
        return [module for name, module in self.named_children() if name not in new]


def _conv1_padding(padding: Padding) -> int:
    return CAFFE_PADDING if padding == "pad100" else _KERNELS[0] // 2


def _fc6_padding(padding: Padding) -> tuple[int, int]:
    """Give the padding before and after: an even kernel has no middle, and `same` must add five."""
    return (0, 0) if padding == "pad100" else (2, 3)


def _build(spec: NetworkSpec) -> Backbone:
    return AlexNet(spec.padding, spec.fc6_channels_or_default, spec.dropout_or_default, spec.width)


_NAMES = Names(
    dropped=frozenset({"fc8"}),
    foreign={
        "features.0": "it is torchvision's AlexNet, which is another network than the CaffeNet "
        "that the paper and this project have: 64 and 192 filters first instead of 96 and 256, no "
        "groups, no normalisation across channels. Its weights cannot be used: take "
        "bvlc_reference_caffenet.caffemodel"
    },
)
"""Source of the difference: `torchvision/models/alexnet.py` of pytorch/vision; its issue 185."""

SPEC = BackboneSpec(
    name="alexnet",
    build=_build,
    taps={32: "fc7"},
    options=frozenset({"fc6_channels", "padding"}),
    dropout=0.5,
    fc6_channels=FC_CHANNELS,
    fc6_is_needed=True,
    preprocessing=("caffe",),
    names=_NAMES,
)
