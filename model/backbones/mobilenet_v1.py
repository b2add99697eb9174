"""Defines MobileNetV1 (Howard et al. 2017, arXiv 1704.04861) as an FCN backbone, 'same' sizes.

Every window is aligned top-left and sees zeros beyond the image: a stride-2 layer's window i
starts at row 2i, so a map at stride s has ceil(H/s) rows for any H (TensorFlow's SAME padding
at even sizes, for which the ImageNet weights were trained).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from model.backbones.base import SAME_CROPS, Backbone, BackboneSpec, Features
from model.backbones.conv_norm import ConvNorm, widened
from model.coordinates import IMAGE
from model.preprocessing import PREPROCESSING, Preprocess
from model.weights.names import Names, Normed

if TYPE_CHECKING:
    from model.build import NetworkSpec

_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
_CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Output channels of blocks 1..13 at width 1.0. Source: arXiv 1704.04861 table 1."""

_FIRST_CHANNELS = 32
_DEPTHWISE = frozenset(f"dw{i}" for i in range(1, 14))
_TAPS = {3: 4, 5: 8, 11: 16}
"""Blocks -> the strides whose last maps they give."""


class MobileNetV1(Backbone):
    """Gives the maps of pw3 (stride 4, 128 channels), pw5 (8, 256), pw11 (16, 512) and fc6 (32).

    `fc6_channels` > 0 adds fc6, a 3x3 convolution, as VGG's fc6 is one, before the score layer:
    it sees the neighbourhood that a 1x1 score layer alone cannot.

    `width`: of all channels but those of fc6, as a factor, to the nearest multiple of 8.
    ImageNet weights fit the width that they were learned at.
    """

    name = "mobilenet_v1"
    crops = SAME_CROPS
    weights_preprocessing = "tensorflow"
    depthwise_layers = _DEPTHWISE

    def __init__(self, fc6_channels: int = 256, dropout: float = 0.1, width: float = 1.0) -> None:
        super().__init__()
        self.preprocess = Preprocess(PREPROCESSING["tensorflow"])
        inputs = widened(_FIRST_CHANNELS, width)
        self.conv0 = ConvNorm(3, inputs, stride=2)
        at = self.conv0.map_of(IMAGE)
        channels, maps = {}, {}
        for index, (stride, count) in enumerate(zip(_STRIDES, _CHANNELS, strict=True), start=1):
            outputs = widened(count, width)
            depthwise = ConvNorm(inputs, inputs, stride=stride, groups=inputs)
            self.add_module(f"dw{index}", depthwise)
            self.add_module(f"pw{index}", ConvNorm(inputs, outputs, kernel=1))
            at, inputs = depthwise.map_of(at), outputs
            if index in _TAPS:
                channels[_TAPS[index]], maps[_TAPS[index]] = outputs, at
        self.fc6: nn.Module = nn.Identity()
        if fc6_channels:
            self.fc6 = ConvNorm(inputs, fc6_channels)
            at = self.fc6.map_of(at)
        self.dropout = nn.Dropout(dropout)
        self.channels = {**channels, 32: fc6_channels or inputs}
        self.maps = {**maps, 32: at}

    def forward(self, images: Tensor) -> Features:
        x = self.conv0(self.preprocess(images))
        maps = {}
        for index in range(1, len(_CHANNELS) + 1):
            x = self.checkpointed(partial(self._separable, index), x)
            if index in _TAPS:
                maps[_TAPS[index]] = x
        return {**maps, 32: self.dropout(self.fc6(x))}

    def _separable(self, index: int, x: Tensor) -> Tensor:
        result: Tensor = self.get_submodule(f"pw{index}")(self.get_submodule(f"dw{index}")(x))
        return result

    def pretrained_modules(self) -> list[nn.Module]:
        return [module for name, module in self.named_children() if name != "fc6"]


def _build(spec: NetworkSpec) -> Backbone:
    return MobileNetV1(spec.fc6_channels_or_default, spec.dropout_or_default, spec.width)


_KERAS = {"conv1": "conv0"} | {
    f"conv_{kind}_{i}": f"{kind}{i}" for i in range(1, 14) for kind in ("dw", "pw")
}
SPEC = BackboneSpec(
    name="mobilenet_v1",
    build=_build,
    taps={4: "pw3", 8: "pw5", 16: "pw11", 32: "fc6"},
    options=frozenset({"fc6_channels"}),
    dropout=0.1,
    fc6_channels=256,
    norms="always",
    preprocessing=("tensorflow",),
    names=Names(
        dropped=frozenset({"conv_preds", "logits"}),
        implied={"keras": "tensorflow", "plain": "tensorflow"},
        normed={"keras": Normed(_KERAS, {f"{name}_bn": name for name in _KERAS}, eps=1e-3)},
        depthwise=_DEPTHWISE,
    ),
)
"""Source of the names: `MobileNet` of keras.applications, whose stride-2 layers pad after the last
row and column as ours do; its norms' eps is Keras' own."""
