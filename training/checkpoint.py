"""A checkpoint holds all that a run needs to go on exactly, as plain tensors and dicts.

Read with `weights_only=True`, so a file from elsewhere can hold no code.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.build import NetworkSpec, build
from model.contract import ClassInfo, TrainingData
from model.modality import RGB
from model.network import SegmentationNetwork
from training.datasets.base import DatasetInfo
from training.datasets.siftflow import GEOMETRIC, SEMANTIC

FORMAT_VERSION = 2
_READABLE = (1, FORMAT_VERSION)
"""1 named the class list of a second head `geometric`."""


class CheckpointError(ValueError):
    """A checkpoint is missing, unreadable or of another network."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Holds the trained `weights`, and `ema`, their moving average, which is what gets exported.

    The fields with defaults are absent from files of earlier versions.
    """

    network: NetworkSpec
    dataset: DatasetInfo
    config: dict[str, Any]
    git_revision: str
    iteration: int
    weights: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    random_states: list[Tensor]
    """State of torch's generator in each process of the run."""
    best_mean_iu: float
    val_scores: dict[str, Any] | None
    epoch_losses: list[float] = field(default_factory=list)
    """Losses of the iterations since the last whole epoch."""
    cuda_random_states: list[Tensor] = field(default_factory=list)
    """State of each process's GPU; empty when the CPU trained."""
    environment: dict[str, str] = field(default_factory=dict)
    """Versions and device, see `training.environment`."""

    def build_network(self) -> SegmentationNetwork:
        """Build the network with the averaged weights (the trained ones if there is no average).

        Raises: CheckpointError.
        """
        network = build(self.network, self.dataset.head_sizes)
        try:
            network.load_state_dict(self.ema or self.weights)
        except RuntimeError as error:
            raise CheckpointError(f"the weights do not fit {self.network}: {error}") from error
        return network.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside, make durable and rename into place: an interrupted write never costs the last
    one, and after a power cut there is the one or the other.

    Raises: CheckpointError if it cannot be written; `path` is then as it was.
    """
    fields = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(checkpoint)}
    fields["network"] = dataclasses.asdict(checkpoint.network)
    fields["dataset"] = dataclasses.asdict(checkpoint.dataset)
    fields["format_version"] = FORMAT_VERSION
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(fields, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _make_durable(path.parent)
    except (OSError, RuntimeError) as error:
        # Torch ends its archive even after a failed write, and then raises a RuntimeError of that.
        reason = _system_error(error)
        if reason is None:
            raise
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk, its half is in the way
        kept = "the one before is still there" if path.exists() else "there was none before"
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {reason.strerror or reason}; {kept}. Make room "
            "on that disk, or see to its permissions, and go on with --resume"
        ) from error


def _make_durable(folder: Path) -> None:
    """Write the folder to the disk, and with it the new name of a renamed file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: BaseException | None) -> OSError | None:
    """Find the system's error behind `error`, if there is one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def load_checkpoint(path: Path, *, mmap: bool = False) -> Checkpoint:
    """Read a checkpoint, of this version or an earlier one.

    `mmap`: for who wants its numbers and not its tensors, which then stay on disk.
    Raises: CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        fields = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        # torch.load raises whatever the broken archive brings up, and its text on a file with
        # code in it explains how to run that code.
        raise CheckpointError(
            f"{path} is not a checkpoint of fcn train (damaged, of another program, or not plain "
            "tensors)"
        ) from error
    if not isinstance(fields, dict) or fields.pop("format_version", None) not in _READABLE:
        raise CheckpointError(f"{path} is not a checkpoint of this version of fcn train")
    try:
        fields["dataset"] = _dataset_info(fields["dataset"])
        fields["network"] = NetworkSpec.from_saved(fields["network"])
        _renew(fields)
        return Checkpoint(**fields)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is incomplete or of another version: {error}") from error


def _dataset_info(fields: dict[str, Any]) -> DatasetInfo:
    """Read either version: 1 had `classes`, later with `geometric` and `modality`, not `heads`."""
    heads = fields.get("heads")
    if heads is None:
        heads = {"": fields["classes"]}
        if geometric := fields.get("geometric"):
            heads = {SEMANTIC: fields["classes"], GEOMETRIC: geometric}
    return DatasetInfo(
        heads={head: _classes(entries) for head, entries in heads.items()},
        data=TrainingData(**fields["data"]),
        modality=fields.get("modality", RGB),
    )


def _classes(entries: Sequence[dict[str, Any]]) -> tuple[ClassInfo, ...]:
    return tuple(ClassInfo(**{**entry, "color": tuple(entry["color"])}) for entry in entries)


def _renew(fields: dict[str, Any]) -> None:
    """Take one random state each, or None, from files written before there were processes."""
    for name in ("random_state", "cuda_random_state"):
        if name in fields:
            state = fields.pop(name)
            fields[f"{name}s"] = [] if state is None else [state]
