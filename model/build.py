"""From a plain description to a network, so that a checkpoint can say what it holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from model.backbones import alexnet, googlenet
from model.backbones.alexnet import AlexNet
from model.backbones.base import Backbone
from model.backbones.caffe import Padding, Truncation
from model.backbones.googlenet import GoogLeNet
from model.backbones.mobilenet_v1 import MobileNetV1
from model.backbones.two_streams import TwoStreams
from model.backbones.vgg16 import FC_CHANNELS, VGG16, Normalisation
from model.fcn import FCN, AnyVariant
from model.heads import Classes
from model.modality import RGB, Modality
from model.upsample import Upsampling

BackboneName = Literal["mobilenet_v1", "vgg16", "alexnet", "googlenet"]
TRUNCATIONS: tuple[Truncation, ...] = get_args(Truncation)


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """Which FCN to build.

    `fc6_channels` and `dropout` None: the backbone's own (MobileNetV1 256 and 0.1; VGG16 and
    AlexNet 4096, in fc7 too, and 0.5; GoogLeNet has no fc6, and 0.4). `padding` is a choice of the
    three nets of the paper, `normalisation` of VGG16, see there. AlexNet is 32s only; `pool5`,
    `pool4` and `pool3` are VGG16 cut short. `pool4_scale`, `pool3_scale`: see `FCN`. `modality`:
    what VGG16 sees of a scene; `rgbd` is early fusion, in its first layer, `rgb-hha` late fusion of
    two nets. `batch_norm` is a choice of VGG16 that sees RGB, `width`, a factor of the channels, of
    MobileNetV1. How many classes and heads: `build` takes those from the data.
    Raises: ValueError if a field does not fit the backbone or the variant.
    """

    backbone: BackboneName
    variant: AnyVariant = "8s"
    upsampling: Upsampling = "fixed"
    fc6_channels: int | None = None
    skip_channels: int = 0
    dropout: float | None = None
    padding: Padding = "same"
    normalisation: Normalisation | None = None
    pool4_scale: float = 1.0
    pool3_scale: float = 1.0
    modality: Modality = RGB
    batch_norm: bool = False
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.skip_channels < 0 or (self.fc6_channels or 0) < 0:
            raise ValueError("fc6_channels and skip_channels must not be negative")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: want 0 <= dropout < 1")
        if self.backbone in ("vgg16", "alexnet") and self.fc6_channels == 0:
            raise ValueError(
                f"{self.backbone} cannot do without fc6: fc6_channels must be at least 1"
            )
        if self.backbone == "googlenet" and self.fc6_channels is not None:
            raise ValueError("googlenet has no fc6: leave fc6_channels out")
        if self.backbone != "vgg16" and self.normalisation is not None:
            raise ValueError(f"normalisation is for vgg16, not {self.backbone}")
        if self.backbone == "mobilenet_v1" and self.padding != "same":
            raise ValueError("padding is for the nets of the paper, not mobilenet_v1")
        if self.batch_norm and (self.backbone != "vgg16" or self.modality != RGB):
            raise ValueError(
                "batch_norm is for vgg16 with modality rgb; mobilenet_v1 always has it"
            )
        if self.width != 1 and self.backbone != "mobilenet_v1":
            raise ValueError(f"width is for mobilenet_v1, not {self.backbone}")
        if not 0.125 <= self.width <= 4:
            raise ValueError(f"width {self.width}: want 0.125 to 4")
        self._check_variant()
        self._check_modality()

    def _check_modality(self) -> None:
        if self.modality == RGB:
            return
        if self.backbone != "vgg16":
            raise ValueError(f"modality {self.modality} is for vgg16, not {self.backbone}")
        if self.normalisation == "torchvision":
            raise ValueError(
                f"modality {self.modality} takes weights in BGR: normalisation must not be "
                "torchvision"
            )
        if self.modality == "rgb-hha" and self.variant in TRUNCATIONS:
            raise ValueError(f"modality rgb-hha is for whole nets, not variant {self.variant}")

    def _check_variant(self) -> None:
        if self.backbone == "alexnet" and self.variant != "32s":
            raise ValueError("alexnet has no inner maps for skips: its variant is 32s only")
        if self.variant in TRUNCATIONS:
            if self.backbone != "vgg16":
                raise ValueError(f"variant {self.variant} is for vgg16, not {self.backbone}")
            if self.fc6_channels is not None or self.dropout is not None:
                raise ValueError(
                    f"variant {self.variant} ends before fc6: leave fc6_channels and dropout out"
                )
        if self.pool4_scale <= 0 or self.pool3_scale <= 0:
            raise ValueError("pool4_scale and pool3_scale must be above 0")
        if self.pool4_scale != 1 and self.variant not in ("16s", "8s"):
            raise ValueError(f"pool4_scale is for 16s and 8s, not {self.variant}")
        if self.pool3_scale != 1 and self.variant != "8s":
            raise ValueError(f"pool3_scale is for 8s, not {self.variant}")

    @property
    def architecture(self) -> str:
        """As written in the contract: `fcn8s-mobilenet_v1`, `fcn32s-vgg16-pad100`,
        `fcn-pool4-vgg16`, `fcn8s-vgg16_bn`, `fcn8s-mobilenet_v1_1.5`."""
        padded = "-pad100" if self.padding == "pad100" else ""
        dash = "-" if self.variant in TRUNCATIONS else ""
        seen = "" if self.modality == RGB else f"-{self.modality}"
        kind = "_bn" if self.batch_norm else "" if self.width == 1 else f"_{self.width:g}"
        return f"fcn{dash}{self.variant}-{self.backbone}{kind}{padded}{seen}"


def build(spec: NetworkSpec, classes: Classes) -> FCN:
    """The network with untrained weights. `classes`: how many, or how many by head."""
    return FCN(
        _backbone(spec),
        classes,
        variant=spec.variant,
        upsampling=spec.upsampling,
        skip_channels=spec.skip_channels,
        pool4_scale=spec.pool4_scale,
        pool3_scale=spec.pool3_scale,
    )


def _backbone(spec: NetworkSpec) -> Backbone:
    if spec.modality == "rgb-hha":
        return TwoStreams(
            _backbone(replace(spec, modality="rgb")), _backbone(replace(spec, modality="hha"))
        )
    if spec.backbone == "vgg16":
        return VGG16(
            padding=spec.padding,
            fc_channels=FC_CHANNELS if spec.fc6_channels is None else spec.fc6_channels,
            normalisation=spec.normalisation or "caffe",
            dropout=0.5 if spec.dropout is None else spec.dropout,
            cut_after=_cut(spec.variant),
            modality=spec.modality,
            batch_norm=spec.batch_norm,
        )
    if spec.backbone == "alexnet":
        return AlexNet(
            padding=spec.padding,
            fc_channels=alexnet.FC_CHANNELS if spec.fc6_channels is None else spec.fc6_channels,
            dropout=0.5 if spec.dropout is None else spec.dropout,
        )
    if spec.backbone == "googlenet":
        return GoogLeNet(
            padding=spec.padding,
            dropout=googlenet.DROPOUT if spec.dropout is None else spec.dropout,
        )
    return MobileNetV1(
        fc6_channels=256 if spec.fc6_channels is None else spec.fc6_channels,
        dropout=0.1 if spec.dropout is None else spec.dropout,
        width=spec.width,
    )


def _cut(variant: AnyVariant) -> Truncation | None:
    return next((cut for cut in TRUNCATIONS if cut == variant), None)
