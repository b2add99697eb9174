"""What the paper's three nets have in common, as their authors' Caffe computes it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.coordinates import CoordinateMap

Padding = Literal["same", "pad100"]
"""`pad100` is the authors' form: the first convolution pads by 100 pixels, fc6 by none, and crops
bring the scores back to the image. `same` has the same parameters, pads so that a map at stride s
has ceil(H/s) rows, and works on the image's own pixels."""

Truncation = Literal["pool3", "pool4", "pool5"]
"""The last layer of a net cut short."""

CAFFE_PADDING = 100
"""Source: `voc-fcn8s/net.py` and `voc-fcn-alexnet/net.py` of shelhamer/fcn.berkeleyvision.org."""

CAFFE_MEAN = (122.67892, 116.66877, 104.00699)
"""Of RGB in 0..255; Caffe nets take BGR, so `caffe_normalised` flips the colours.

Source: `voc-fcn8s/net.py` of shelhamer/fcn.berkeleyvision.org (there BGR)."""

_LRN_SIZE, _LRN_ALPHA = 5, 1e-4
"""The exponent is 0.75. Source: `voc-fcn-alexnet/net.py` of shelhamer/fcn.berkeleyvision.org;
`bvlc_googlenet/train_val.prototxt` of BVLC/caffe has the same."""


def caffe_normalised(images: Tensor, mean: Tensor) -> Tensor:
    """float [N,3,H,W] RGB in 0..255 -> BGR less the mean, given as [1,3,1,1] in RGB."""
    return (images - mean).flip(1)


def local_response_norm(x: Tensor) -> Tensor:
    """x / (1 + alpha/5 * sum of squares over the five channels around it) ** 0.75, [N,C,h,w].

    Channels beyond the first and last count as zero. Source: Krizhevsky et al. 2012, section 3.3;
    alpha is divided by the window as in Caffe's LRN layer (and in ONNX's), k is 1.
    Written out because torch's own pools over a fifth dimension, which exports badly.
    """
    channels, reach = x.shape[1], _LRN_SIZE // 2
    squares = functional.pad(x.square(), (0, 0, 0, 0, reach, reach))
    total = squares[:, :channels]
    for offset in range(1, _LRN_SIZE):
        total = total + squares[:, offset : offset + channels]
    root = (1 + _LRN_ALPHA / _LRN_SIZE * total).sqrt()
    return x / (root * root.sqrt())


def max_pool3(x: Tensor, padding: Padding) -> Tensor:
    """3x3 windows, stride 2, of values that are not negative.

    `pad100`: Caffe's, in ceil mode. `same`: window i is centred on row 2i.
    """
    if padding == "same":
        return functional.max_pool2d(x, 3, 2, padding=1)
    return functional.max_pool2d(x, 3, 2, ceil_mode=True)


def max_pool3_map(at: CoordinateMap, padding: Padding) -> CoordinateMap:
    """Where the cells of `max_pool3` lie."""
    return at.conv(3, stride=2, pad=1 if padding == "same" else 0)


def initialise(network: nn.Module) -> None:
    """Weights for ReLU layers, biases zero: keeps the variance through any depth.

    Source: He et al. 2015, arXiv 1502.01852.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def caffe_mean() -> Tensor:
    """float32 [1,3,1,1], RGB."""
    return torch.tensor(CAFFE_MEAN).view(1, 3, 1, 1)
