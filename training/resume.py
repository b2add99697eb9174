"""Decides whether a run may go on: a checkpoint continues only the config it began with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.checkpoint import Checkpoint, CheckpointError
from training.config import ConfigError, TrainConfig, parse_config
from training.datasets import DatasetInfo

FREE = frozenset(
    {
        "activation_checkpointing",
        "compile",
        "data.root",
        "data.classes",
        "data.workers",
        "distill.teacher",
        "init.imagenet",
        "init.calibration_images",
        "init.checkpoint",
        "init.hha_checkpoint",
        "name",
        "schedule.val_every_epochs",
        "threads",
    }
)
"""Fields that change nothing in what the remaining iterations compute (up to the rounding of sums
that run on another number of threads, or compiled). Of a file only the place is free: the teacher
must be the same one."""


def check_resumable(
    checkpoint: Checkpoint, config: TrainConfig, info: DatasetInfo, path: Path
) -> None:
    """Refuse another config or class list. `path` is the checkpoint's.

    Raises: CheckpointError naming what differs.
    """
    if checkpoint.dataset.heads != info.heads:
        raise CheckpointError(f"{path} was trained on another class list")
    try:
        begun = parse_config(checkpoint.config, str(path))
    except ConfigError as error:
        raise CheckpointError(f"cannot resume, the recipe has fields of old: {error}") from error
    before, now = _flat(begun.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    changed = [
        f"{name} (was {before.get(name)}, is {value})"
        for name, value in now.items()
        if name not in FREE and before.get(name) != value
    ]
    if changed:
        raise CheckpointError(
            f"{path} was begun with another recipe: {', '.join(changed)}. Go on with the same one, "
            "or start a new run"
        )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to `section.field`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
