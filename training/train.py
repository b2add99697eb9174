"""The training loop."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.backbones.mobilenet_v1 import MobileNetV1
from model.build import build
from model.fcn import FCN
from training.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from training.config import ConfigError, TrainConfig
from training.datasets import SegmentationDataset, open_dataset
from training.evaluate import evaluate
from training.loader import iterations_per_epoch, training_batches
from training.losses import cross_entropy, inverse_log_weights, soft_dice
from training.metrics import Scores
from training.optimization import WeightAverage, make_optimizer, rate_factor, set_rates
from training.predictors import NetworkPredictor
from training.record import Record

_PICTURES = 4


def train(
    config: TrainConfig, run_dir: Path, *, resume: bool = False, stop_after: int | None = None
) -> Checkpoint:
    """Train to the end of the schedule; returns the last checkpoint.

    Writes `run_dir/last.pt` after every epoch, `best.pt` when val mean IU rises, config.json,
    log.csv and tensorboard/. `resume` continues from last.pt exactly: weights, optimiser,
    schedule, average, iteration and random state; `stop_after` ends early after that many
    iterations, as an interruption would.

    Raises: ConfigError, DatasetError, CheckpointError.
    """
    trainer = Trainer(config, run_dir, resume=resume)
    return trainer.run(stop_after)


class Trainer:
    """One run: its data, network, optimiser and where it stands."""

    def __init__(self, config: TrainConfig, run_dir: Path, *, resume: bool) -> None:
        if config.data.root is None:
            raise ConfigError("data.root is not set: say where the data set lies, data.root=DIR")
        self.config, self.run_dir = config, run_dir
        last = run_dir / "last.pt"
        if last.exists() and not resume:
            raise ConfigError(f"{last} exists: continue it with --resume or choose another --run")
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        data = config.data
        root = config.data.root
        self.train_data = open_dataset(data.dataset, root, data.train_split, data.classes)
        self.val_data = open_dataset(data.dataset, root, data.val_split, data.classes)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = build(config.network, self.train_data.num_classes)
        self.per_epoch = iterations_per_epoch(len(self.train_data), config.schedule.batch_size)
        self.total = self.per_epoch * config.schedule.epochs
        self.iteration = 0
        self.best_mean_iu = 0.0
        self.val_scores: dict[str, Any] | None = None
        checkpoint = load_checkpoint(last) if resume else None
        if checkpoint is None:
            _initialise(self.network, config, self.train_data)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.network, config.optimizer)
        decay = config.schedule.ema_decay
        self.average = WeightAverage(self.network, decay) if decay else None
        if checkpoint is not None:
            self._restore(checkpoint)
        self.weights = self._class_weights()
        self.record = Record(run_dir, self.train_data.info.classes, self.iteration)
        (run_dir / "config.json").write_text(config.model_dump_json(indent=2) + "\n")

    def run(self, stop_after: int | None = None) -> Checkpoint:
        schedule = self.config.schedule
        batches = training_batches(
            self.train_data,
            self.config.augment,
            batch_size=schedule.batch_size,
            seed=self.config.seed,
            start=self.iteration,
            total=self.total,
            workers=self.config.data.workers,
        )
        end = self.total if stop_after is None else min(self.total, self.iteration + stop_after)
        checkpoint: Checkpoint | None = None
        losses: list[float] = []
        started = time.perf_counter()
        self.network.train()
        bar = tqdm(total=self.total, initial=self.iteration, unit="it", desc=self.config.name)
        for images, target in batches:
            losses.append(self._step(images, target))
            bar.update()
            if self.iteration % self.per_epoch == 0:
                speed = len(losses) * images.shape[0] / (time.perf_counter() - started)
                checkpoint = self._end_epoch(sum(losses) / len(losses), speed)
                bar.set_postfix(loss=f"{losses[-1]:.3f}", best=f"{self.best_mean_iu:.4f}")
                losses, started = [], time.perf_counter()
            if self.iteration >= end:
                break
        bar.close()
        if checkpoint is None or checkpoint.iteration != self.iteration:
            checkpoint = self._checkpoint()
            save_checkpoint(self.run_dir / "last.pt", checkpoint)
        self.record.close()
        return checkpoint

    def _step(self, images: Tensor, target: Tensor) -> float:
        config = self.config
        set_rates(self.optimizer, rate_factor(self.iteration, self.total, config.schedule))
        images = images.to(self.device, non_blocking=True).float()
        target = target.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        loss = cross_entropy(logits, target, self.weights, config.loss.reduction)
        if config.loss.dice:
            loss = loss + config.loss.dice * soft_dice(logits, target)
        loss.backward()
        self.optimizer.step()
        self.iteration += 1
        if self.average is not None:
            self.average.update(self.network, self.iteration)
        value = loss.item()
        if value != value:
            raise ConfigError(
                f"the loss is not a number at iteration {self.iteration}: lower the learning rate"
            )
        return value

    def _end_epoch(self, loss: float, speed: float) -> Checkpoint:
        epoch = self.iteration // self.per_epoch
        scores = None
        if epoch % self.config.schedule.val_every_epochs == 0 or self.iteration == self.total:
            scores = self._validate()
        self.record.epoch(
            iteration=self.iteration,
            epoch=epoch,
            loss=loss,
            lr_factor=rate_factor(self.iteration - 1, self.total, self.config.schedule),
            images_per_s=speed,
            scores=scores,
        )
        improved = scores is not None and scores.mean_iu > self.best_mean_iu
        if scores is not None:
            self.val_scores = scores.to_dict(self.record.names)
            self.best_mean_iu = max(self.best_mean_iu, scores.mean_iu)
        checkpoint = self._checkpoint()
        save_checkpoint(self.run_dir / "last.pt", checkpoint)
        if improved:
            save_checkpoint(self.run_dir / "best.pt", checkpoint)
        return checkpoint

    def _validate(self) -> Scores:
        """Scores of the averaged weights on the whole val split."""
        with self._averaged_weights():
            predict = NetworkPredictor(self.network, bf16=self.config.precision == "bf16")
            scores = evaluate(predict, self.val_data, progress=False).scores()
            step = max(1, len(self.val_data) // _PICTURES)
            for index in range(0, len(self.val_data), step)[:_PICTURES]:
                sample = self.val_data[index]
                self.record.picture(f"val/{index}", self.iteration, sample, predict(sample.image))
        self.network.train()
        tqdm.write(f"iteration {self.iteration}: val mean IU {scores.mean_iu:.4f}")
        return scores

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        if self.average is None:
            yield
            return
        trained = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average.state)
        try:
            yield
        finally:
            self.network.load_state_dict(trained)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )

    def _class_weights(self) -> Tensor | None:
        offset = self.config.loss.class_weight_offset
        if offset is None:
            return None
        weights = inverse_log_weights(self.train_data.class_frequencies(), offset)
        return weights.to(self.device)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            network=self.config.network,
            dataset=self.train_data.info,
            config=json.loads(self.config.model_dump_json()),
            git_revision=git_revision(),
            iteration=self.iteration,
            weights=self.network.state_dict(),
            ema=self.average.state if self.average else None,
            optimizer=self.optimizer.state_dict(),
            random_state=torch.get_rng_state(),
            best_mean_iu=self.best_mean_iu,
            val_scores=self.val_scores,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.network != self.config.network:
            raise CheckpointError(
                f"{self.run_dir}/last.pt holds {checkpoint.network}, not {self.config.network}"
            )
        if checkpoint.dataset.classes != self.train_data.info.classes:
            raise CheckpointError(f"{self.run_dir}/last.pt was trained on another class list")
        self.network.load_state_dict(checkpoint.weights)
        if self.average is not None and checkpoint.ema is not None:
            self.average.state = {
                name: value.to(self.device) for name, value in checkpoint.ema.items()
            }
        self.optimizer.load_state_dict(checkpoint.optimizer)
        torch.set_rng_state(checkpoint.random_state)
        self.iteration = checkpoint.iteration
        self.best_mean_iu = checkpoint.best_mean_iu
        self.val_scores = checkpoint.val_scores


def _initialise(network: FCN, config: TrainConfig, data: SegmentationDataset) -> None:
    """ImageNet weights, and norms that fit them, if the recipe names a file."""
    if config.init.imagenet is None:
        return
    backbone = network.backbone
    if not isinstance(backbone, MobileNetV1):
        raise ConfigError(f"init.imagenet: no importer for {config.network.backbone} yet")
    backbone.load_imagenet(config.init.imagenet)
    augment = replace(config.augment, min_scale=1.0, max_scale=1.0)
    count = min(config.init.calibration_images, len(data))
    batches = training_batches(
        data,
        augment,
        batch_size=min(8, count),
        seed=config.seed,
        start=0,
        total=max(1, count // 8),
        workers=0,
    )
    backbone.restore_norms(images.float() for images, _target in batches)


def git_revision() -> str:
    """Short hash of HEAD, `+` appended when tracked files have changes; `unknown` without git."""
    here = Path(__file__).parent
    try:
        revision = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+" if changed else "")


def _git(where: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=where, check=True, capture_output=True, text=True)
    return done.stdout.strip()
