"""Starts a new run from ImageNet weights, or from the checkpoint of the previous stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor
from tqdm import tqdm

from model.backbones.norms import norm_pairs, restore
from model.build import NetworkSpec
from model.export.network_from_onnx import NetworkFromOnnxError, network_from_onnx
from model.network import SegmentationNetwork
from model.surgery import convolutions, transplant
from model.weights.layers import Layer, WeightsError
from training.checkpoint import CheckpointError, load_checkpoint
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
        start = load_exported if config.init.checkpoint.suffix == ".onnx" else load_stage
        report = start(network, config.init.checkpoint, config, data)
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


def load_exported(
    network: SegmentationNetwork, path: Path, config: TrainConfig, data: SegmentationDataset
) -> Taken:
    """Copy what `load_stage` copies from an exported model in fp32, whose norms are folded, and
    measure these anew on training images.

    Raises: ConfigError if the file is missing, damaged or of another net.
    """
    if config.init.hha_checkpoint is not None:
        raise ConfigError("init.hha_checkpoint: two streams start from two checkpoints (.pt)")
    try:
        exported, contract = network_from_onnx(path)
    except (OSError, NetworkFromOnnxError) as error:
        raise ConfigError(f"init.checkpoint: {error}") from error
    if exported.spec is not None:
        _check_same_net(exported.spec, config.network, path)
    names = tuple(each.name for each in contract.classes)
    same_classes = {"": names} == data.info.class_names
    held = {name.removesuffix(".weight"): value for name, value in exported.state_dict().items()}
    layers = {
        name: Layer(held[name].numpy(), held[f"{name}.bias"].numpy())
        for name in convolutions(network).values()
        if name in held and (same_classes or name.startswith("backbone."))
    }
    needed = {
        name: name
        for name in convolutions(network).values()
        if name in layers or name.startswith("backbone.")
    }
    try:
        transplant(network, layers, needed, source=str(path))
    except WeightsError as error:
        raise ConfigError(f"init.checkpoint: {error}") from error
    copied = {id(network.get_submodule(name)) for name in layers}
    pairs = [pair for pair in norm_pairs(network) if id(pair.conv) in copied]
    if pairs:
        restore(network, pairs, _calibration(config, data))
    own = [name for name in convolutions(network).values() if name not in layers]
    return Taken(tuple(layers), tuple(own), ())


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
    _check_same_net(checkpoint.network, wanted, path)
    same_classes = [*checkpoint.dataset.class_names.values()] == [*data.info.class_names.values()]
    return checkpoint.ema or checkpoint.weights, same_classes


def _of_stream(weights: Weights, stream: str) -> Weights:
    """Rename `score_fr.weight` of a net alone to `score_fr.color.weight` of the two, and so on."""
    named = {}
    for name, value in weights.items():
        module, _, rest = name.partition(".")
        named[f"{module}.{stream}.{rest}"] = value
    return named


def _check_same_net(before: NetworkSpec, now: NetworkSpec, path: Path) -> None:
    """Refuse another net. Raises: ConfigError naming every field that differs and must not."""
    # What layers both have by the same name, and yet they would mean another thing. The rest may
    # change from stage to stage: skips are added, and upsampling may begin to learn.
    fields = ["backbone", "padding", "modality"]
    if before.variant in ("16s", "8s", "4s"):
        fields += ["skip_channels", "pool4_scale"]
    if before.variant in ("8s", "4s"):
        fields += ["pool3_scale"]
    if before.variant == now.variant == "4s":
        fields += ["pool2_channels"]
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
    backbone.restore_norms(_calibration(config, data))


def _calibration(config: TrainConfig, data: SegmentationDataset) -> Iterator[Tensor]:
    """Yield batches of training images at their own scale, to measure norms on."""
    augment = replace(config.augment, min_scale=1.0, max_scale=1.0, mix=0.0)
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
    for step in tqdm(steps, "measuring norms", unit="batch"):
        for images, _target in step:
            yield images.float()
