"""Starts a new run from ImageNet weights, or from the checkpoint of the previous stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor
from tqdm import tqdm

from model.build import NetworkSpec
from model.network import SegmentationNetwork
from training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from training.config import ConfigError, TrainConfig
from training.datasets import DatasetInfo, SegmentationDataset
from training.loader import EpochPlan, step_loader

_BATCH = 8

Weights = dict[str, Tensor]
"""Tensors by their names in a network."""


def initialise(
    network: SegmentationNetwork, config: TrainConfig, data: SegmentationDataset
) -> None:
    """Load what `init` of the config names; without it the network stays as it is.

    Raises: ConfigError.
    """
    if config.init.checkpoint is not None:
        report = load_stage(network, config.init.checkpoint, config, data)
        tqdm.write(f"{config.init.checkpoint}: {report}")
    else:
        load_imagenet(network, config, data)


def check_fits(config: TrainConfig, info: DatasetInfo) -> None:
    """Refuse a network of other channels than the data set gives, and several labellings with
    another loss than the paper's. Raises: ConfigError."""
    modality = config.network.modality
    if modality != info.modality:
        raise ConfigError(
            f"network.modality is {modality}, but {config.data.dataset} gives {info.modality}: "
            "choose the data.dataset of that modality, as nyudv2_rgbd, or the network"
        )
    loss = config.loss
    if len(info.heads) > 1 and (
        loss.reduction != "sum" or loss.dice or loss.class_weight_offset is not None
    ):
        raise ConfigError(
            f"{config.data.dataset} has several labellings, learned from the summed loss alone: "
            "set loss.reduction=sum, loss.dice=0 and loss.class_weight_offset=null"
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """Names the layers of the network, in its order; `left` is what the checkpoint has more."""

    copied: tuple[str, ...]
    new: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        layers = "layer" if len(self.copied) == 1 else "layers"
        parts = [f"{len(self.copied)} {layers} copied ({_span(self.copied)})"]
        parts += [f"new: {', '.join(self.new)}"] if self.new else []
        parts += [f"not wanted: {', '.join(self.left)}"] if self.left else []
        return "; ".join(parts)


@torch.no_grad()
def load_stage(
    network: SegmentationNetwork, path: Path, config: TrainConfig, data: SegmentationDataset
) -> Taken:
    """Copy every layer that `network` and the checkpoint's network share, of the averaged weights.

    New score layers keep their start, zero, and new upsamplings theirs, bilinear; a fixed
    upsampling is in no checkpoint. If the classes are others, all score layers are new, and so are
    learned upsamplings, of which each class has its own.
    Source: `surgery.interp` and `solve.py` of shelhamer/fcn.berkeleyvision.org, which copy by name
    and then set the upsampling anew.
    Raises: ConfigError if the file is missing, damaged or of another net.
    """
    weights, same_classes = _previous(path, config, data)
    own = network.state_dict()
    shared = {
        name for name in own if name in weights and (same_classes or name.startswith("backbone."))
    }
    for name in own:
        if name.startswith("backbone.") and name not in shared:
            raise ConfigError(f"init.checkpoint: {path} has no {name}: it is of another net")
    for name in sorted(shared):
        if weights[name].shape != own[name].shape:
            raise ConfigError(
                f"init.checkpoint: {name} is {tuple(weights[name].shape)} in {path}, want "
                f"{tuple(own[name].shape)}: it is of another net"
            )
        own[name].copy_(weights[name])
    return Taken(
        copied=_layers([name for name in own if name in shared]),
        new=_layers([name for name in own if name not in shared]),
        left=_layers([name for name in weights if name not in shared]),
    )


def _previous(path: Path, config: TrainConfig, data: SegmentationDataset) -> tuple[Weights, bool]:
    """Read the weights of the checkpoint, and whether its classes are those of `data`.

    With `init.hha_checkpoint`, the weights of the two nets as those of the two streams.
    Raises: ConfigError.
    """
    hha = config.init.hha_checkpoint
    if hha is None:
        return _weights(path, config.network, data)
    color, same_color = _weights(path, replace(config.network, modality="rgb"), data)
    other, same_hha = _weights(hha, replace(config.network, modality="hha"), data)
    streams = _of_stream(color, "color") | _of_stream(other, "hha")
    return streams, same_color and same_hha


def _weights(path: Path, wanted: NetworkSpec, data: SegmentationDataset) -> tuple[Weights, bool]:
    """Read one checkpoint of a net like `wanted` as `_previous` does. Raises: ConfigError."""
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        raise ConfigError(
            f"init.checkpoint: {error}; train the previous stage first, or say where it is"
        ) from error
    _check_same_net(checkpoint, wanted, path)
    same_classes = [*checkpoint.dataset.class_names.values()] == [*data.info.class_names.values()]
    return checkpoint.ema or checkpoint.weights, same_classes


def _of_stream(weights: Weights, stream: str) -> Weights:
    """Rename `score_fr.weight` of a net alone to `score_fr.color.weight` of the two, and so on."""
    named = {}
    for name, value in weights.items():
        module, _, rest = name.partition(".")
        named[f"{module}.{stream}.{rest}"] = value
    return named


def _check_same_net(checkpoint: Checkpoint, now: NetworkSpec, path: Path) -> None:
    """Refuse another net. Raises: ConfigError naming every field that differs and must not."""
    before = checkpoint.network
    # What layers both have by the same name, and yet they would mean another thing. The rest may
    # change from stage to stage: skips are added, and upsampling may begin to learn.
    fields = ["backbone", "padding", "modality"]
    if before.variant in ("16s", "8s", "4s"):
        fields += ["skip_channels", "pool4_scale"]
    if before.variant in ("8s", "4s"):
        fields += ["pool3_scale"]
    differing = [
        f"network.{field} (there {getattr(before, field)}, here {getattr(now, field)})"
        for field in fields
        if getattr(before, field) != getattr(now, field)
    ]
    fed = [spec.preprocessing_or_default for spec in (before, now)]
    if fed[0] != fed[1]:
        differing.append(f"network.preprocessing (there {fed[0]}, here {fed[1]})")
    if differing:
        raise ConfigError(f"init.checkpoint: {path} is of another net: {', '.join(differing)}")


def _layers(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in names))


def _span(layers: Sequence[str]) -> str:
    return layers[0] if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"


def load_imagenet(
    network: SegmentationNetwork, config: TrainConfig, data: SegmentationDataset
) -> None:
    """Load ImageNet weights, and norms that fit them, if the config names a file.

    Raises: ConfigError if the file is missing, damaged or for another network.
    """
    path = config.init.imagenet
    if path is None:
        return
    backbone = network.backbone
    try:
        backbone.load_imagenet(path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"init.imagenet: there is no file {path}; make it with `fcn import-weights`, or set it "
            "to null to start from random weights"
        ) from error
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ConfigError(f"init.imagenet: cannot use {path}: {error}") from error
    if not backbone.norm_pairs():
        return
    augment = replace(config.augment, min_scale=1.0, max_scale=1.0)
    count = min(config.init.calibration_images, len(data))
    steps = step_loader(
        data,
        augment,
        EpochPlan(len(data), min(_BATCH, count)),
        seed=config.seed,
        start=0,
        total=max(1, count // _BATCH),
        workers=0,
    )
    bar = tqdm(steps, "measuring norms", unit="batch")
    backbone.restore_norms(images.float() for step in bar for images, _target in step)
