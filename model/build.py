"""From a plain description to a network, so that a checkpoint can say what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.backbones.base import Backbone
from model.backbones.mobilenet_v1 import MobileNetV1
from model.backbones.vgg16 import FC_CHANNELS, VGG16, Normalisation, Padding
from model.fcn import FCN, Variant
from model.upsample import Upsampling

BackboneName = Literal["mobilenet_v1", "vgg16"]


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Which FCN to build.

    `fc6_channels` and `dropout` None: the backbone's own (MobileNetV1 256 and 0.1; VGG16 4096,
    in fc7 too, and 0.5). `padding` and `normalisation` are choices of VGG16, see there.
    Raises: ValueError if a field does not fit the backbone.
    """

    backbone: BackboneName
    variant: Variant = "8s"
    upsampling: Upsampling = "fixed"
    fc6_channels: int | None = None
    skip_channels: int = 0
    dropout: float | None = None
    padding: Padding = "same"
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        if self.skip_channels < 0 or (self.fc6_channels or 0) < 0:
            raise ValueError("fc6_channels and skip_channels must not be negative")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: want 0 <= dropout < 1")
        if self.backbone == "vgg16":
            if self.fc6_channels == 0:
                raise ValueError("vgg16 cannot do without fc6: fc6_channels must be at least 1")
        elif self.padding != "same" or self.normalisation is not None:
            raise ValueError(f"padding and normalisation are for vgg16, not {self.backbone}")

    @property
    def architecture(self) -> str:
        """As written in the contract: `fcn8s-mobilenet_v1`, `fcn32s-vgg16-pad100`."""
        padded = "-pad100" if self.padding == "pad100" else ""
        return f"fcn{self.variant}-{self.backbone}{padded}"


def build(spec: NetworkSpec, num_classes: int) -> FCN:
    """The network with untrained weights."""
    return FCN(
        _backbone(spec),
        num_classes,
        variant=spec.variant,
        upsampling=spec.upsampling,
        skip_channels=spec.skip_channels,
    )


def _backbone(spec: NetworkSpec) -> Backbone:
    if spec.backbone == "vgg16":
        return VGG16(
            padding=spec.padding,
            fc_channels=FC_CHANNELS if spec.fc6_channels is None else spec.fc6_channels,
            normalisation=spec.normalisation or "caffe",
            dropout=0.5 if spec.dropout is None else spec.dropout,
        )
    return MobileNetV1(
        fc6_channels=256 if spec.fc6_channels is None else spec.fc6_channels,
        dropout=0.1 if spec.dropout is None else spec.dropout,
    )
