"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861) as an FCN backbone, 'same' sizes.

Every window is aligned top-left and sees zeros beyond the image: a stride-2 layer's window i
starts at row 2i, so a map at stride s has ceil(H/s) rows for any H (TensorFlow's SAME padding
at even sizes, for which the ImageNet weights were trained).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbones.base import SAME_CROPS, Backbone, Features
from model.surgery import Shapes
from model.weights.read import read_npz

_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Output channels of blocks 1..13 at width 1.0. Source: arXiv 1704.04861 table 1."""

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

    @torch.no_grad()
    def restate(self, mean: Tensor, variance: Tensor) -> None:
        """Give the norm these statistics, float32 [C], and the scale and shift that undo them."""
        norm = self.norm
        old_mean, old_variance = norm.running_mean, norm.running_var
        if old_mean is None or old_variance is None:
            raise ValueError("the norm keeps no running statistics")
        scale = norm.weight / (old_variance + norm.eps).sqrt()
        norm.bias.add_(scale * (mean - old_mean))
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        old_mean.copy_(mean)
        old_variance.copy_(variance)


class MobileNetV1(Backbone):
    """Taps: pw5 (stride 8, 256 channels), pw11 (16, 512), then fc6 and fc7 on pw13 (32, 1024).

    `fc6_channels` > 0 adds fc6, a 3x3 convolution, as VGG's fc6 is one, before the score layer:
    it sees the neighbourhood that a 1x1 score layer alone cannot.
    """

    name = "mobilenet_v1"
    pool3_channels = 256
    pool4_channels = 512
    crops = SAME_CROPS

    def __init__(self, fc6_channels: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        self.conv0 = ConvNorm(3, 32, stride=2)
        inputs = 32
        for index, (stride, outputs) in enumerate(zip(_STRIDES, _CHANNELS, strict=True), start=1):
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

    @torch.no_grad()
    def restore_norms(self, batches: Iterable[Tensor]) -> None:
        """Give each norm the mean and variance its convolution has on `batches`.

        Folded weights leave the norms trivial, and training them in that state starts with a
        jump. Scale and shift are set so that the layer's function stays what it was.
        `batches`: float [N,3,H,W] RGB in 0..255. Raises: ValueError if there are none.
        """
        moments = {name: _Moments(layer.conv.out_channels) for name, layer in self._layers()}
        hooks = [
            layer.conv.register_forward_hook(
                lambda _module, _inputs, output, name=name: moments[name].add(output)
            )
            for name, layer in self._layers()
        ]
        was_training = self.training
        self.eval()
        try:
            for images in batches:
                self(images)
        finally:
            for hook in hooks:
                hook.remove()
            self.train(was_training)
        for name, layer in self._layers():
            mean, variance = moments[name].finish()
            layer.restate(mean, variance)

    def _layers(self) -> list[tuple[str, ConvNorm]]:
        return [
            (name, module)
            for name, module in self.named_children()
            if isinstance(module, ConvNorm) and name != "fc6"
        ]


class _Moments:
    """Running per-channel mean and variance of [N,C,h,w] maps, in float64."""

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        x = x.double()
        self.count += x.numel() // x.shape[1]
        self.total += x.sum(dim=(0, 2, 3))
        self.squares += x.square().sum(dim=(0, 2, 3))

    def finish(self) -> tuple[Tensor, Tensor]:
        """float32 [C] mean and variance. Raises ValueError if nothing was added."""
        if not self.count:
            raise ValueError("restore_norms needs at least one batch of images")
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp(min=0)
        return mean.float(), variance.float()
