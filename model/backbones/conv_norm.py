"""Defines the block of the mobile networks: a convolution, batch norm, ReLU6."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.coordinates import CoordinateMap

_EPS = 1e-3
"""Batch norm epsilon of the TensorFlow reference implementations."""


class ConvNorm(nn.Module):
    """Convolves without bias, normalises, and applies ReLU6 if wanted; 'same' at strides 1 and 2.

    A stride-2 window is centred on row 2i + 1, as TensorFlow's SAME padding has it at even sizes,
    for which the ImageNet weights were trained; with a kernel of 3 it starts at row 2i.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.pad_before = (kernel - stride) // 2
        self.pad_after = kernel - 1 - self.pad_before
        uneven = self.pad_before != self.pad_after
        padding = 0 if uneven else self.pad_before
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=_EPS)
        self.activation, self._uneven = activation, uneven

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self._convolve(x))
        return functional.relu6(x) if self.activation else x

    def _convolve(self, x: Tensor) -> Tensor:
        if self._uneven:
            x = functional.pad(x, (self.pad_before, self.pad_after) * 2)
        in_bf16 = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if self.training and self.conv.groups > 1 and in_bf16:
            return self._depthwise(x)
        convolved: Tensor = self.conv(x)
        return convolved

    def _depthwise(self, x: Tensor) -> Tensor:
        """Compute the layer as autocast would, or more exactly, without what oneDNN does slowly in
        bf16 (bench/LOG.md)."""
        weight, groups, padding = self.conv.weight, self.conv.groups, self.conv.padding
        if self.conv.kernel_size[0] > 3:
            # Its backward takes four to six times as long as in fp32.
            with torch.autocast("cpu", enabled=False):
                return functional.conv2d(
                    x.to(weight.dtype), weight, None, self.conv.stride, padding, 1, groups
                )
        # Strided it takes three times as long as with stride 1 and three quarters dropped.
        step = self.conv.stride[0]
        dense = functional.conv2d(x, weight, padding=padding, groups=groups)
        return dense[:, :, ::step, ::step]

    def map_of(self, at: CoordinateMap) -> CoordinateMap:
        """Compute where the cells of the result lie, given where those of the input do."""
        return at.conv(self.conv.kernel_size[0], self.conv.stride[0], self.pad_before)


def widened(channels: int, width: float) -> int:
    """Multiply `channels` by `width`, to the nearest multiple of 8."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)
