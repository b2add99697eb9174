"""Builds networks from plain descriptions, so that a checkpoint can say what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from model.backbones import alexnet, efficientnet_lite0, googlenet, mobilenet_v1, vgg16
from model.backbones.base import Backbone, BackboneSpec
from model.backbones.caffe import TRUNCATIONS, Padding, scaled
from model.backbones.two_streams import TwoStreams
from model.fcn import FCN, AnyVariant, check_skips
from model.heads import Classes
from model.modality import RGB, Modality
from model.upsample import Upsampling

BACKBONES: dict[str, BackboneSpec] = {
    module.SPEC.name: module.SPEC
    for module in (alexnet, efficientnet_lite0, googlenet, mobilenet_v1, vgg16)
}
"""A new backbone is a file of `model/backbones/` and a word here."""


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Says which FCN to build.

    `backbone` is one of `BACKBONES`, whose `BackboneSpec` says which of the other fields it has,
    and what `fc6_channels`, `dropout` and `preprocessing` are where they are None. `width` is a
    factor of its channels, those of VGG16's and AlexNet's fc6 and fc7 too unless they are given.
    The variants `pool5`, `pool4` and `pool3` are VGG16 cut short. `pool2_channels`, `pool4_scale`,
    `pool3_scale`: see `FCN`. `modality`: what VGG16 sees of a scene; `rgbd` is early fusion, in its
    first layer, `rgb-hha` late fusion of two nets. How many classes and heads there are, `build` is
    told.
    Raises: ValueError if a field does not fit the backbone or the variant.
    """

    backbone: str
    variant: AnyVariant = "8s"
    upsampling: Upsampling = "fixed"
    fc6_channels: int | None = None
    skip_channels: int = 0
    pool2_channels: int | None = None
    dropout: float | None = None
    padding: Padding = "same"
    preprocessing: str | None = None
    pool4_scale: float = 1.0
    pool3_scale: float = 1.0
    modality: Modality = RGB
    batch_norm: bool = False
    width: float = 1.0

    def __post_init__(self) -> None:
        backbone = self.backbone_spec
        for field in fields(self):
            missing = field.name in _OPTIONS and field.name not in backbone.options
            if missing and getattr(self, field.name) != field.default:
                having = _backbones_with(field.name)
                raise ValueError(f"{field.name} is for {having}, not {self.backbone}: leave it out")
        channels = (self.skip_channels, self.pool2_channels or 0, self.fc6_channels or 0)
        if min(channels) < 0:
            raise ValueError("fc6_, skip_ and pool2_channels must not be negative")
        if backbone.fc6_is_needed and self.fc6_channels == 0:
            raise ValueError(
                f"{self.backbone} cannot do without fc6: fc6_channels must be at least 1"
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: want 0 <= dropout < 1")
        if self.preprocessing_or_default not in backbone.preprocessing:
            raise ValueError(
                f"preprocessing {self.preprocessing!r}: {self.backbone} takes "
                f"{', '.join(backbone.preprocessing)}"
            )
        if not 0 < self.width <= 4:
            raise ValueError(f"width {self.width}: want above 0, at most 4")
        self._check_variant()
        backbone.check(self)

    def _check_variant(self) -> None:
        backbone = self.backbone_spec
        if self.variant in TRUNCATIONS and "truncation" not in backbone.options:
            having = _backbones_with("truncation")
            raise ValueError(f"variant {self.variant} is for {having}, not {self.backbone}")
        check_skips(self.backbone, self.variant, backbone.taps)
        if self.pool2_channels is not None and self.variant != "4s":
            raise ValueError(f"pool2_channels is for 4s, not {self.variant}")
        if self.pool4_scale <= 0 or self.pool3_scale <= 0:
            raise ValueError("pool4_scale and pool3_scale must be above 0")
        if self.pool4_scale != 1 and self.variant not in ("16s", "8s", "4s"):
            raise ValueError(f"pool4_scale is for 16s, 8s and 4s, not {self.variant}")
        if self.pool3_scale != 1 and self.variant not in ("8s", "4s"):
            raise ValueError(f"pool3_scale is for 8s and 4s, not {self.variant}")

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> NetworkSpec:
        """Read the fields that a checkpoint or an exported file holds, also of earlier versions.

        Raises: TypeError for an unknown field, ValueError.
        """
        return cls(**renamed(saved))

    @property
    def backbone_spec(self) -> BackboneSpec:
        """Look up what the backbone says of itself. Raises: ValueError if there is none."""
        if self.backbone not in BACKBONES:
            raise ValueError(f"no backbone {self.backbone!r}: want one of {', '.join(BACKBONES)}")
        return BACKBONES[self.backbone]

    @property
    def fc6_channels_or_default(self) -> int:
        if self.fc6_channels is not None:
            return self.fc6_channels
        backbone = self.backbone_spec
        channels = backbone.fc6_channels or 0
        return scaled([channels], self.width)[0] if backbone.fc6_is_needed else channels

    @property
    def dropout_or_default(self) -> float:
        return self.backbone_spec.dropout if self.dropout is None else self.dropout

    @property
    def preprocessing_or_default(self) -> str:
        return self.preprocessing or self.backbone_spec.preprocessing[0]

    @property
    def has_norms(self) -> bool:
        """Tell whether the backbone has batch norms."""
        return self.backbone_spec.norms == "always" or self.batch_norm

    @property
    def architecture(self) -> str:
        """Give the name for the contract: `fcn8s-mobilenet_v1`, `fcn32s-vgg16-pad100`,
        `fcn-pool4-vgg16`, `fcn8s-vgg16_bn`, `fcn8s-mobilenet_v1_1.5`."""
        padded = "-pad100" if self.padding == "pad100" else ""
        dash = "-" if self.variant in TRUNCATIONS else ""
        seen = "" if self.modality == RGB else f"-{self.modality}"
        kind = ("_bn" if self.batch_norm else "") + (f"_{self.width:g}" if self.width != 1 else "")
        return f"fcn{dash}{self.variant}-{self.backbone}{kind}{padded}{seen}"


_OPTIONS = frozenset({"fc6_channels", "padding", "preprocessing", "modality", "batch_norm"})
"""Fields that some backbones have."""


def _backbones_with(option: str) -> str:
    return " and ".join(name for name, spec in BACKBONES.items() if option in spec.options)


def renamed(network: Mapping[str, Any]) -> dict[str, Any]:
    """Give the fields of a network the names that they have now."""
    now = dict(network)
    if "normalisation" in now:
        now["preprocessing"] = now.pop("normalisation")
    return now


def build(spec: NetworkSpec, classes: Classes) -> FCN:
    """Build a network with untrained weights. `classes`: how many, or how many by head."""
    network = FCN(
        build_backbone(spec),
        classes,
        variant=spec.variant,
        upsampling=spec.upsampling,
        skip_channels=spec.skip_channels,
        pool4_scale=spec.pool4_scale,
        pool3_scale=spec.pool3_scale,
        pool2_channels=spec.pool2_channels,
    )
    network.spec = spec
    return network


def build_backbone(spec: NetworkSpec) -> Backbone:
    if spec.modality == "rgb-hha":
        return TwoStreams(
            build_backbone(replace(spec, modality="rgb")),
            build_backbone(replace(spec, modality="hha")),
        )
    return spec.backbone_spec.build(spec)
