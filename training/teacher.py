"""Loads the network that another one learns from, beside the labels (`distill` of a config)."""

from __future__ import annotations

from pathlib import Path

from model.modality import RGB
from model.network import SegmentationNetwork
from training.checkpoint import CheckpointError, load_checkpoint
from training.config import ConfigError
from training.datasets import DatasetInfo


def load_teacher(path: Path, info: DatasetInfo) -> SegmentationNetwork:
    """Load a checkpoint, with its averaged weights, or an exported fp32 file; in eval mode, and no
    weight of it learns.

    Raises: ConfigError if it cannot be had or does not label the classes of `info`.
    """
    if info.modality != RGB or len(info.heads) > 1:
        raise ConfigError("distill.teacher is for RGB images with one labelling")
    if path.suffix.lower() == ".onnx":
        from model.export.network_from_onnx import NetworkFromOnnxError, network_from_onnx

        if not path.is_file():
            raise ConfigError(f"distill.teacher: there is no file {path}")
        try:
            network, contract = network_from_onnx(path)
        except NetworkFromOnnxError as error:
            raise ConfigError(f"distill.teacher: {error}") from error
        names: tuple[str, ...] = contract.class_names
    else:
        try:
            checkpoint = load_checkpoint(path)
            network = checkpoint.build_network()
        except CheckpointError as error:
            raise ConfigError(f"distill.teacher: {error}") from error
        if checkpoint.network.modality != RGB or len(network.heads) > 1:
            raise ConfigError(f"distill.teacher: {path} is not of RGB images and one labelling")
        names = tuple(entry.name for entry in checkpoint.dataset.classes)
    wanted = tuple(entry.name for entry in info.classes)
    if names != wanted:
        raise ConfigError(
            f"distill.teacher: {path} labels {', '.join(names)}, the data set "
            f"{', '.join(wanted)}: it must be of the same classes in the same order"
        )
    return network.eval().requires_grad_(False)
