"""A recipe for tests, and what a run of it left."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.checkpoint import Checkpoint
from training.config import TrainConfig

MakeConfig = Callable[..., TrainConfig]

NARROW: dict[str, Any] = {"backbone": "mobilenet_v1", "width": 0.125, "fc6_channels": 16}


"""The same layers as at full width, in a fraction of the time."""
PLAIN: dict[str, Any] = {
    "network": {
        "backbone": "alexnet",
        "variant": "32s",
        "fc6_channels": 8,
        "dropout": 0.0,
        "width": 0.125,
    },
    "optimizer": {"kind": "sgd", "head_lr": 0.05, "backbone_lr": 0.05},
}
"""Changes: without norms and dropout, which see and draw for each batch alone."""


def raw_recipe(root: Path) -> dict[str, Any]:
    """Give it as read from YAML: 3 iterations an epoch, 2 epochs; everything random is on."""
    return {
        "name": "streets",
        "network": {**NARROW, "dropout": 0.5},
        "data": {"dataset": "folder", "root": str(root), "workers": 0},
        "augment": {"crop_height": 48, "crop_width": 64, "aspect": 0.2, "channel_gain": 0.1},
        "loss": {"class_weight_offset": 1.1, "dice": 0.5},
        "schedule": {"epochs": 2, "batch_size": 2, "warmup_iterations": 2, "val_every_epochs": 1},
        "precision": "fp32",
        "threads": 1,
    }


def changed(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`raw` with changes given as `section__field=value`; it is changed itself."""
    for key, value in changes.items():
        *sections, name = key.split("__")
        inner = raw
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value.copy() if isinstance(value, dict) else value
    return raw


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the recipe that tests share: nobody may write into its folder."""

    config: TrainConfig
    folder: Path
    checkpoint: Checkpoint

    @property
    def last(self) -> Path:
        """The checkpoint's file."""
        return self.folder / "last.pt"

    def copy(self, to: Path) -> Path:
        """A folder to write into."""
        shutil.copytree(self.folder, to)
        return to


def equal(a: Any, b: Any) -> bool:
    """To the bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)
