"""AlexNet (Krizhevsky et al. 2012) as CaffeNet, the form the FCN authors used, as a backbone.

CaffeNet pools before it normalises across channels; conv2, conv4 and conv5 are in two groups. The
fully connected layers are convolutions, fc6 of 6x6 and fc7 of 1x1, and the classifier is gone
(Long, Shelhamer, Darrell, arXiv 1411.4038, section 4.1). Layers have their Caffe names.

Not torchvision's AlexNet, which is another one: 64 first channels, no groups, no normalisation.
Source of every number: `voc-fcn-alexnet/net.py` of shelhamer/fcn.berkeleyvision.org.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from model.backbones.base import Backbone, Features
from model.backbones.caffe import (
    CAFFE_PADDING,
    Padding,
    caffe_mean,
    caffe_normalised,
    initialise,
    local_response_norm,
    max_pool3,
    max_pool3_map,
)
from model.coordinates import IMAGE, CoordinateMap, fcn_crops

CHANNELS = (96, 256, 384, 384, 256)
FC_CHANNELS = 4096

_KERNELS = (11, 5, 3, 3, 3)
_GROUPS = (1, 2, 1, 2, 2)
_CONV1_STRIDE = 4
_FC6_KERNEL = 6


def alexnet_map(padding: Padding) -> CoordinateMap:
    """Where the cells of fc7 lie: on pixels, not between them, which is what makes the last
    deconvolution's kernel 63 and not 64."""
    at = IMAGE.conv(_KERNELS[0], stride=_CONV1_STRIDE, pad=_conv1_padding(padding))
    at = max_pool3_map(at, padding).conv(5, pad=2)
    at = max_pool3_map(at, padding).conv(3, pad=1).conv(3, pad=1).conv(3, pad=1)
    return max_pool3_map(at, padding).conv(_FC6_KERNEL, pad=_fc6_padding(padding)[0])


class AlexNet(Backbone):
    """fc7 (stride 32) after dropout; no inner taps, as the paper gives it no skips.

    `fc_channels`: of fc6 and fc7. `channels`: of conv1 to conv5; all but the third even.

    Any size from 1x1 in both forms. For `pad100` that follows from pooling in ceil mode: with p
    rows in pool5, 32p >= H + 162, while FCN-32s needs 32p >= H + 147.
    """

    name = "alexnet"
    normalisation = "caffe"
    mean: Tensor

    def __init__(
        self,
        padding: Padding = "same",
        fc_channels: int = FC_CHANNELS,
        dropout: float = 0.5,
        channels: Sequence[int] = CHANNELS,
    ) -> None:
        super().__init__()
        conv1, conv2, conv3, conv4, conv5 = channels
        k1, k2, k3, k4, k5 = _KERNELS
        g1, g2, g3, g4, g5 = _GROUPS
        self.padding: Padding = padding
        self.conv1 = nn.Conv2d(3, conv1, k1, _CONV1_STRIDE, _conv1_padding(padding), groups=g1)
        self.conv2 = nn.Conv2d(conv1, conv2, k2, padding=2, groups=g2)
        self.conv3 = nn.Conv2d(conv2, conv3, k3, padding=1, groups=g3)
        self.conv4 = nn.Conv2d(conv3, conv4, k4, padding=1, groups=g4)
        self.conv5 = nn.Conv2d(conv4, conv5, k5, padding=1, groups=g5)
        self.fc6 = nn.Conv2d(conv5, fc_channels, _FC6_KERNEL)
        self.fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
        self.drop6, self.drop7 = nn.Dropout(dropout), nn.Dropout(dropout)
        self.fc7_channels = fc_channels
        self.crops = fcn_crops(None, None, alexnet_map(padding))
        self.register_buffer("mean", caffe_mean(), persistent=False)
        initialise(self)

    def normalise(self, images: Tensor) -> Tensor:
        return caffe_normalised(images, self.mean)

    def forward(self, images: Tensor) -> Features:
        x = self.normalise(images)
        for part in (self._stem, self._middle, self._fully_connected):
            x = self.segment(part, x)
        return Features(pool3=None, pool4=None, fc7=x)

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
        """fc6 and fc7 are CaffeNet's only at its own width."""
        new = () if self.fc7_channels == FC_CHANNELS else ("fc6", "fc7")
        return [module for name, module in self.named_children() if name not in new]


def _conv1_padding(padding: Padding) -> int:
    return CAFFE_PADDING if padding == "pad100" else _KERNELS[0] // 2


def _fc6_padding(padding: Padding) -> tuple[int, int]:
    """Before and after; an even kernel has no middle, and `same` must add five in all."""
    return (0, 0) if padding == "pad100" else (2, 3)
