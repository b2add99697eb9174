"""The training recipe: YAML checked by pydantic, with `section.field=value` overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.build import NetworkSpec
from training.losses import Reduction
from training.transforms import Augmentation


class ConfigError(ValueError):
    """A recipe cannot be read or has a wrong value; the message names file and field."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    dataset: str
    root: Path | None = None
    """Where the data set lies; given on the command line rather than in a shared recipe."""
    classes: Path | None = None
    """Class list YAML, instead of the data set's own."""
    train_split: str = "train"
    val_split: str = "val"
    workers: int = Field(1, ge=0)
    """Processes that read and augment; 0 does it in the training process."""


class LossConfig(_Section):
    reduction: Reduction = "mean"
    class_weight_offset: float | None = Field(None, gt=1)
    """Weights 1 / ln(offset + class frequency); None: no weights."""
    dice: float = Field(0.0, ge=0)
    """Weight of the soft Dice loss added to the cross entropy."""
    sample: float = Field(1.0, gt=0, le=1)
    """Share of the cells that the cross entropy is taken of, see `sampled_cross_entropy`."""
    sample_cell_px: int = Field(32, ge=1)
    """Side of such a cell."""


class OptimizerConfig(_Section):
    kind: Literal["adamw", "sgd"] = "adamw"
    head_lr: float = Field(1e-3, gt=0)
    backbone_lr: float = Field(3e-4, ge=0)
    """For what starts from ImageNet weights."""
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    """For convolution weights; biases and norms are never decayed."""
    learned: Literal["all", "score"] = "all"
    """`score`: only the score layers, the rest stays as it began (the paper's FCN-32s-fixed)."""


class ScheduleConfig(_Section):
    epochs: int = Field(ge=1)
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients make one step."""
    warmup_iterations: int = Field(0, ge=0)
    power: float = Field(0.9, ge=0)
    """Polynomial decay (1 - iteration / total) ** power; 0 keeps the rate."""
    ema_decay: float = Field(0.998, ge=0, lt=1)
    """Per iteration; 0 turns the moving average off."""
    val_every_epochs: int = Field(5, ge=1)


class InitConfig(_Section):
    imagenet: Path | None = None
    """Backbone weights (.npz); given on the command line."""
    calibration_images: int = Field(64, ge=1)
    """Training images on which the norms' statistics are measured, see `restore_norms`."""


class TrainConfig(_Section):
    name: str
    network: NetworkSpec
    data: DataConfig
    schedule: ScheduleConfig
    augment: Augmentation = Augmentation()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    init: InitConfig = InitConfig()
    precision: Literal["bf16", "fp32"] = "bf16"
    activation_checkpointing: bool = False
    """Inner maps of the backbone are computed again for the gradient instead of kept."""
    seed: int = 1337
    threads: int = Field(0, ge=0)
    """CPU threads; 0 leaves the choice to torch."""

    @model_validator(mode="after")
    def _paper_loss_needs_fp32_sum(self) -> Self:
        if self.loss.reduction == "sum" and self.loss.dice:
            raise ValueError("loss.dice has no meaning beside the summed loss: set it to 0")
        if self.loss.sample < 1 and self.loss.dice:
            raise ValueError("loss.dice takes every pixel, loss.sample not: set dice to 0")
        if self.schedule.accumulate > 1 and self.loss.dice:
            raise ValueError(
                "loss.dice is of a whole batch, which schedule.accumulate never has together: set "
                "one of them to its default"
            )
        return self

    @model_validator(mode="after")
    def _norms_always_learn(self) -> Self:
        if self.optimizer.learned == "score" and self.network.backbone == "mobilenet_v1":
            raise ValueError(
                "optimizer.learned=score: the norms of mobilenet_v1 would still take on the "
                "statistics of the data; it is for the nets of the paper"
            )
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """`overrides` are `section.field=value`, the value in YAML (`schedule.epochs=2`).

    Raises: ConfigError.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: want a mapping of sections, got {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], source: str) -> TrainConfig:
    """Raises: ConfigError with one line per wrong field."""
    try:
        return TrainConfig.model_validate(raw)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc']) or 'recipe'}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from error


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, name = key.strip().split(".")
    if not equals or not name:
        raise ConfigError(f"override {override!r}: want section.field=value")
    for section in sections:
        inner = raw.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {section!r} is not a section")
        raw = inner
    try:
        raw[name] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML") from error


# pydantic checks plain dataclasses used as fields, but lets unknown keys pass unless told.
for _kind in (NetworkSpec, Augmentation):
    _kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[union-attr]
