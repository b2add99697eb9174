"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861) as an FCN backbone, 'same' sizes.

Every window is aligned top-left and sees zeros beyond the image: a stride-2 layer's window i
starts at row 2i, so a map at stride s has ceil(H/s) rows for any H (TensorFlow's SAME padding
at even sizes, for which the ImageNet weights were trained).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbones.base import SAME_CROPS, Backbone, Features
from model.backbones.norms import Pair
from model.surgery import Shapes
from model.weights.read import read_npz

_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Output channels of blocks 1..13 at width 1.0. Source: arXiv 1704.04861 table 1."""

_FIRST_CHANNELS = 32

_EPS = 1e-3
"""Batch norm epsilon of the TensorFlow reference implementation."""


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and optionally ReLU6. 'same' for strides 1 and 2."""

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
        self.pad_after = kernel - 1 if stride == 2 else 0
        padding = 0 if stride == 2 else kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=_EPS)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self._convolve(x))
        return functional.relu6(x) if self.activation else x

    def _convolve(self, x: Tensor) -> Tensor:
        if self.pad_after:
            x = functional.pad(x, (0, self.pad_after, 0, self.pad_after))
            if self.training and self.conv.groups > 1:
                # The same values. oneDNN's backward of a strided depthwise convolution takes twice
                # as long as that of an unstrided one with three quarters of its result dropped.
                dense = functional.conv2d(x, self.conv.weight, groups=self.conv.groups)
                return dense[:, :, ::2, ::2]
        convolved: Tensor = self.conv(x)
        return convolved

    @torch.no_grad()
    def load_folded(self, name: str, arrays: dict[str, np.ndarray]) -> None:
        """Weight and bias of `name`; the norm becomes the identity plus the bias.

        Raises: ValueError if either is missing or has the wrong shape.
        """
        try:
            weight, bias = arrays[f"{name}/w"], arrays[f"{name}/b"]
        except KeyError as error:
            raise ValueError(f"the weights file has no {error.args[0]!r}") from error
        # O,H,W,I -> O,I,H,W; depthwise 1,H,W,C -> C,1,H,W
        order = (3, 0, 1, 2) if self.conv.groups > 1 else (0, 3, 1, 2)
        tensor = torch.from_numpy(weight.astype(np.float32).transpose(order).copy())
        if tensor.shape != self.conv.weight.shape or bias.shape != (self.conv.out_channels,):
            raise ValueError(
                f"{name}: weights {tuple(tensor.shape)} and bias {bias.shape} do not fit "
                f"{tuple(self.conv.weight.shape)}"
            )
        self.conv.weight.copy_(tensor)
        self.norm.bias.copy_(torch.from_numpy(bias.astype(np.float32)))
        self.norm.weight.fill_((1 + self.norm.eps) ** 0.5)  # running variance is 1


class MobileNetV1(Backbone):
    """Taps: pw5 (stride 8, 256 channels), pw11 (16, 512), then fc6 and fc7 on pw13 (32, 1024).

    `fc6_channels` > 0 adds fc6, a 3x3 convolution, as VGG's fc6 is one, before the score layer:
    it sees the neighbourhood that a 1x1 score layer alone cannot.

    `width`: of all channels but those of fc6, as a factor, to the nearest multiple of 8.
    ImageNet weights fit the width that they were learned at.
    """

    name = "mobilenet_v1"
    crops = SAME_CROPS

    def __init__(self, fc6_channels: int = 256, dropout: float = 0.1, width: float = 1.0) -> None:
        super().__init__()
        inputs = _widened(_FIRST_CHANNELS, width)
        self.conv0 = ConvNorm(3, inputs, stride=2)
        channels = [_widened(count, width) for count in _CHANNELS]
        self.pool3_channels, self.pool4_channels = channels[4], channels[10]
        for index, (stride, outputs) in enumerate(zip(_STRIDES, channels, strict=True), start=1):
            self.add_module(f"dw{index}", ConvNorm(inputs, inputs, stride=stride, groups=inputs))
            self.add_module(f"pw{index}", ConvNorm(inputs, outputs, kernel=1))
            inputs = outputs
        self.fc6 = ConvNorm(inputs, fc6_channels) if fc6_channels else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc7_channels = fc6_channels or inputs

    def normalise(self, images: Tensor) -> Tensor:
        return (images - 128.0) / 128.0

    def forward(self, images: Tensor) -> Features:
        x = self.conv0(self.normalise(images))
        taps = {}
        for index in range(1, len(_CHANNELS) + 1):
            x = self.segment(partial(self._separable, index), x)
            taps[index] = x
        return Features(pool3=taps[5], pool4=taps[11], fc7=self.dropout(self.fc6(x)))

    def _separable(self, index: int, x: Tensor) -> Tensor:
        result: Tensor = self.get_submodule(f"pw{index}")(self.get_submodule(f"dw{index}")(x))
        return result

    def pretrained_modules(self) -> list[nn.Module]:
        return [module for name, module in self.named_children() if name != "fc6"]

    def start_shapes(self) -> dict[str, Shapes]:
        """Of the layers that `load_imagenet` fills, O,I,H,W, norms folded in."""
        return {
            name: Shapes(tuple(layer.conv.weight.shape), (layer.conv.out_channels,))
            for name, layer in self._layers()
        }

    def load_imagenet(self, path: Path) -> None:
        """From an .npz with `<layer>/w` (O,H,W,I; depthwise 1,H,W,C) and `<layer>/b`, batch norm
        folded in. The norms become the identity plus that bias; see `restore_norms`.

        Raises: ValueError if it is no .npz, or naming the layer that is missing or has the wrong
        shape; OSError if it cannot be read.
        """
        arrays = read_npz(path)
        for name, layer in self._layers():
            layer.load_folded(name, arrays)

    def norm_pairs(self) -> list[Pair]:
        return [(layer.conv, layer.norm) for _, layer in self._layers()]

    def _layers(self) -> list[tuple[str, ConvNorm]]:
        return [
            (name, module)
            for name, module in self.named_children()
            if isinstance(module, ConvNorm) and name != "fc6"
        ]


def _widened(channels: int, width: float) -> int:
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)
