"""From a plain description to a network, so that a checkpoint can say what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.backbones.base import Backbone
from model.backbones.mobilenet_v1 import MobileNetV1
from model.fcn import FCN, Variant
from model.upsample import Upsampling

BackboneName = Literal["mobilenet_v1"]


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Which FCN to build. Fields that a backbone has no use for are left at their defaults."""

    backbone: BackboneName
    variant: Variant = "8s"
    upsampling: Upsampling = "fixed"
    fc6_channels: int = 256
    skip_channels: int = 0
    dropout: float = 0.1

    @property
    def architecture(self) -> str:
        """As written in the contract, e.g. `fcn8s-mobilenet_v1`."""
        return f"fcn{self.variant}-{self.backbone}"


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
    return MobileNetV1(fc6_channels=spec.fc6_channels, dropout=spec.dropout)
