"""The config of a run, which users call its recipe: its fields, checked by pydantic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.build import NetworkSpec
from training.analysis.masking import Mask
from training.config_file import ConfigError as ConfigError
from training.config_file import override, read_config, renamed
from training.losses import LossConfig
from training.precision import Precision
from training.transforms import Augmentation


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    dataset: str
    root: Path | None = None
    """Where the data set lies; given on the command line rather than in a shared config."""
    classes: Path | None = None
    """Class list YAML, instead of the data set's own."""
    train_split: str = "train"
    val_split: str = "val"
    hold_out: str | None = None
    """Pattern of the names of those images of `train_split` that are not learned from but take the
    place of `val_split`, as `0006R0*`."""
    resize: int | None = Field(None, ge=32)
    """Images with a longer side are scaled down until it has so many pixels, in training and in
    validation."""
    allow_absent: bool = False
    """Trains although a class has no pixel in `train_split`: such a class is never learned."""
    mask: Mask = "all"
    """Pixels of the images that both splits keep, see `training.analysis.masking`."""
    workers: int = Field(1, ge=0)
    """Processes that read and augment; 0 does it in the training process."""


class OptimizerConfig(_Section):
    kind: Literal["adamw", "sgd"] = "adamw"
    head_lr: float = Field(1e-3, gt=0)
    backbone_lr: float = Field(3e-4, ge=0)
    """Learning rate of what starts from ImageNet weights."""
    momentum: float = Field(0.9, ge=0, lt=1)
    bias_lr_factor: float = Field(1.0, gt=0)
    """Learning rate of convolutions' biases over that of their weights; the paper's is 2 (4.3)."""
    weight_decay: float = Field(0.01, ge=0)
    """Applies to convolution weights; biases and norms are never decayed."""
    trainable: Literal["all", "score_layers"] = "all"
    """`score_layers`: the rest stays as it began (the paper's FCN-32s-fixed)."""


class ScheduleConfig(_Section):
    epochs: int | None = Field(None, ge=1)
    iterations: int | None = Field(None, ge=1)
    """Replaces epochs where the run's length does not depend on the number of images."""
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients make one step."""
    warmup_iterations: int = Field(0, ge=0)
    power: float = Field(0.9, ge=0)
    """Polynomial decay (1 - iteration / total) ** power; 0 keeps the rate."""
    ema_decay: float = Field(0.998, ge=0, lt=1)
    """Decay per iteration; 0 turns the moving average off."""
    norm_images: int = Field(0, ge=0)
    """Training crops on which the norms of the averaged weights are measured before each
    validation and at the end; 0 averages the statistics of the steps, which are noisy where a
    process has few crops of each."""
    val_every_epochs: int = Field(5, ge=1)
    patience: int | None = Field(None, ge=1)
    """The run ends after so many validations without a better mean IU; None: never early."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.iterations is None):
            given = "neither" if self.epochs is None else "both"
            raise ValueError(f"want epochs or iterations, got {given}: set the other one to null")
        return self

    def total_iterations(self, per_epoch: int) -> int:
        """Compute the length of the run; `per_epoch`: iterations that take each training image
        once."""
        return self.iterations or per_epoch * (self.epochs or 0)


class InitConfig(_Section):
    imagenet: Path | None = None
    """Backbone weights (.npz)."""
    checkpoint: Path | None = None
    """A net with the same backbone, such as the previous stage's, gives every layer both have."""
    hha_checkpoint: Path | None = None
    """The net that was trained on HHA alone, for the stream of that name; `checkpoint` is then the
    one trained on colour alone."""
    calibration_images: int = Field(64, ge=1)
    """Training images on which the norms' statistics are measured, see `restore_norms`."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.imagenet is not None and self.checkpoint is not None:
            raise ValueError("imagenet and checkpoint both say how to start: set one to null")
        if self.hha_checkpoint is not None and self.checkpoint is None:
            raise ValueError("hha_checkpoint wants checkpoint too, of the net trained on colour")
        return self


class DistillConfig(_Section):
    teacher: Path | None = None
    """Checkpoint or exported fp32 file of a network of the same classes, which is learned from
    beside the labels; None: there is none."""
    maps: Path | None = None
    """Folder of what a network of any kind said of each training image, in place of `teacher`: see
    `training.datasets.taught` and tools/make_teacher_maps.py."""
    weight: float = Field(1.0, gt=0)
    """Weight of the distillation loss beside the cross entropy."""
    temperature: float = Field(1.0, gt=0)
    """Both networks' scores are divided by it, see `losses.distillation`; maps are taken as they
    are."""

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        if self.teacher is not None and self.maps is not None:
            raise ValueError("teacher and maps both say what to learn from: set one to null")
        return self


class TrainConfig(_Section):
    name: str
    network: NetworkSpec
    data: DataConfig
    schedule: ScheduleConfig
    augment: Augmentation = Augmentation()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    init: InitConfig = InitConfig()
    distill: DistillConfig = DistillConfig()
    precision: Precision = "auto"
    compile: bool = False
    """The network's passes are compiled by torch.compile; the first steps take a minute or so."""
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
    def _teacher_beside_the_mean(self) -> Self:
        if self.distill.teacher is None and self.distill.maps is None:
            return self
        if self.loss.reduction == "sum":
            raise ValueError("distill is for loss.reduction=mean, not sum")
        if self.loss.sample < 1:
            raise ValueError("the teacher speaks of every pixel, loss.sample not: set it to 1")
        return self

    @model_validator(mode="after")
    def _compiled_as_it_is(self) -> Self:
        if self.compile and self.activation_checkpointing:
            raise ValueError(
                "torch.compile decides itself what it computes twice: set compile or "
                "activation_checkpointing to false"
            )
        return self

    @model_validator(mode="after")
    def _streams_are_of_late_fusion(self) -> Self:
        if self.init.hha_checkpoint is not None and self.network.modality != "rgb-hha":
            raise ValueError(
                f"init.hha_checkpoint is for network.modality=rgb-hha, not {self.network.modality}"
            )
        return self

    @model_validator(mode="after")
    def _norms_to_measure(self) -> Self:
        if self.schedule.norm_images and not self.network.has_norms:
            raise ValueError(
                f"schedule.norm_images: {self.network.backbone} has no norms to measure: "
                "set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _norms_always_learn(self) -> Self:
        if self.optimizer.trainable == "score_layers" and self.network.has_norms:
            raise ValueError(
                f"optimizer.trainable=score_layers: the norms of {self.network.backbone} "
                "would still take on the statistics of the data; it is for the nets of the paper"
            )
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read `path` and what it extends, and apply `overrides`: `section.field=value`, the value in
    YAML (`schedule.epochs=2`).

    Raises: ConfigError.
    """
    raw = read_config(path)
    for text in overrides:
        override(raw, text)
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], source: str) -> TrainConfig:
    """Check every field. Raises: ConfigError with one line per wrong field."""
    try:
        return TrainConfig.model_validate(renamed(raw, source))
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc']) or 'recipe'}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from error


# pydantic checks plain dataclasses used as fields, but lets unknown keys pass unless told.
for _kind in (NetworkSpec, Augmentation):
    _kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[union-attr]
