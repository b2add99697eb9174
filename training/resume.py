"""Decides whether a run may go on: a checkpoint continues only the config it began with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from training.config import ConfigError, TrainConfig, parse_config
from training.datasets import DatasetInfo

FREE = frozenset(
    {
        "activation_checkpointing",
        "compile",
        "data.root",
        "data.classes",
        "data.workers",
        "distill.maps",
        "distill.teacher",
        "init.imagenet",
        "init.calibration_images",
        "init.checkpoint",
        "init.hha_checkpoint",
        "name",
        "schedule.norm_images",
        "schedule.patience",
        "schedule.val_every_epochs",
        "threads",
    }
)
"""Fields that change nothing in what the remaining iterations compute (up to the rounding of sums
that run on another number of threads, or compiled). Of a file only the place is free: the teacher,
or what it said, must be the same."""


_TRACES = ("log.csv", "curves.png", "tensorboard", "config.json")
"""A run leaves these in its folder before its first checkpoint."""


def check_new(run_dir: Path, *, quiet: bool = False) -> None:
    """Refuse to begin a run where there are checkpoints of another; say so of lesser traces, unless
    another process of the run does.

    Raises: ConfigError with what is there and what to do.
    """
    last, best = run_dir / "last.pt", run_dir / "best.pt"
    if last.exists():
        raise ConfigError(
            f"{last} exists: continue it with --resume or choose another --run. It holds "
            f"{_described(last)}"
        )
    if best.exists():
        raise ConfigError(
            f"{best} exists, of an earlier run without a last.pt to go on from: choose another "
            "--run, or move it away"
        )
    traces = [name for name in _TRACES if (run_dir / name).exists()]
    if traces and not quiet:
        warn(
            f"{run_dir} has {', '.join(traces)} of an earlier run that saved no checkpoint: the "
            "log begins anew, and TensorBoard will show both"
        )


def warn(text: str) -> None:
    """Tell the user what may be wrong, and go on."""
    tqdm.write(f"fcn: warning: {text}", file=sys.stderr)


def _described(last: Path) -> str:
    try:
        checkpoint = load_checkpoint(last, mmap=True)
    except CheckpointError:
        return "no checkpoint that can be read"
    return (
        f"run {checkpoint.config.get('name')!r} at iteration {checkpoint.iteration}, best val mean "
        f"IU {checkpoint.best_mean_iu:.4f}"
    )


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
