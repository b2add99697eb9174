"""Holds the parts that the paper's three nets share, as their authors' Caffe computes them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import Literal, NamedTuple, get_args

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
TRUNCATIONS: tuple[Truncation, ...] = get_args(Truncation)

CAFFE_PADDING = 100
"""Source: `voc-fcn8s/net.py` and `voc-fcn-alexnet/net.py` of shelhamer/fcn.berkeleyvision.org."""

_LRN_SIZE, _LRN_ALPHA = 5, 1e-4
"""The exponent is 0.75. Source: `voc-fcn-alexnet/net.py` of shelhamer/fcn.berkeleyvision.org;
`bvlc_googlenet/train_val.prototxt` of BVLC/caffe has the same."""


def local_response_norm(x: Tensor) -> Tensor:
    """Compute x / (1 + alpha/5 * sum of squares over the five channels around it) ** 0.75.

    x: [N,C,h,w].

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
    """Take the maximum of 3x3 windows, stride 2, of values that are not negative.

    `pad100`: Caffe's, in ceil mode. `same`: window i is centred on row 2i.
    """
    if padding == "same":
        return functional.max_pool2d(x, 3, 2, padding=1)
    return functional.max_pool2d(x, 3, 2, ceil_mode=True)


def max_pool3_map(at: CoordinateMap, padding: Padding) -> CoordinateMap:
    """Compute where the cells of `max_pool3` lie."""
    return at.conv(3, stride=2, pad=1 if padding == "same" else 0)


def scaled(channels: Sequence[int], width: float, multiple: int = 1) -> list[int]:
    """Multiply each by `width`, to the nearest `multiple` and at least one of it."""
    return [multiple * max(1, round(count * width / multiple)) for count in channels]


def initialise(network: nn.Module) -> None:
    """Set weights as ReLU layers need them to keep the variance through any depth, biases to zero.

    Source: He et al. 2015, arXiv 1502.01852.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Copies(NamedTuple):
    """Describes rows of a map that are alike, computed once and put back after a pooling.

    `more` copies of row `first`, and of the row that `last` rows follow, are put in for the next
    layer, and `whole` for a score layer, which wants all; columns alike.
    """

    first: int
    last: int
    more: int
    whole: int


def constant_padding(pools: Sequence[CoordinateMap]) -> tuple[int, list[Copies]]:
    """Tell by how much the padding of 100 may shrink, and what makes up for it after each pooling.

    Between what sees the image and what sees the canvas' edge all rows above and below the image
    are the same, and so are the columns beside it. `pools`: where the cells of each pooling lie on
    the map of the first convolution, 3x3, whose cell j sees the rows j to j + 2 of the canvas.
    """
    shrunk: list[int] = []
    rows: list[tuple[int, int]] = []
    missing = CAFFE_PADDING
    for at in pools:
        stride, reach = int(at.stride), (at.receptive_field_px - 1) / 2
        lowest, highest = at.start - reach, at.start + reach
        first, last = ceil(-lowest / stride), ceil(highest / stride)
        above = floor((CAFFE_PADDING - 3 - highest) / stride) - first
        below = floor((CAFFE_PADDING - 2 - stride + lowest) / stride) - last
        # Whole cells of every map, so that the others stay where they were; one row stays.
        missing = min(min(above, below) * stride, missing // stride * stride)
        if missing <= 0:
            break
        shrunk.append(missing)
        rows.append((first, last))
    steps = zip(rows, pools, shrunk, [*shrunk[1:], 0], strict=False)
    return shrunk[0], [
        Copies(first, last, (now - then) // int(at.stride), now // int(at.stride))
        for (first, last), at, now, then in steps
    ]


def put_back(x: Tensor, copies: Copies, more: int) -> Tensor:
    """Put `more` of the copies into a map [N,C,h,w]."""
    if not more:
        return x
    first, last = copies.first, copies.last
    for axis in (2, 3):
        before = (slice(None),) * axis
        parts = [
            x[(*before, slice(None, first))],
            *[x[(*before, slice(first, first + 1))]] * more,
            x[(*before, slice(first, -last))],
            *[x[(*before, slice(-last - 1, -last))]] * more,
            x[(*before, slice(-last, None))],
        ]
        x = torch.cat(parts, dim=axis)
    return x
