"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.build import build
from training.analysis.masking import show
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import ConfigError, TrainConfig
from training.datasets import DatasetError, open_dataset
from training.evaluate import evaluate
from training.initialise import initialise
from training.loader import iterations_per_epoch, training_batches
from training.losses import (
    cross_entropy,
    inverse_log_weights,
    sampled_cross_entropy,
    soft_dice,
)
from training.metrics import Scores
from training.optimization import WeightAverage, make_optimizer, rate_factor, set_rates
from training.predictors import NetworkPredictor
from training.record import Record
from training.resume import check_resumable
from training.revision import git_revision

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
        self.train_data, self.val_data = (
            show(open_dataset(data.dataset, root, split, data.classes), data.shown)
            for split in (data.train_split, data.val_split)
        )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = build(config.network, self.train_data.num_classes)
        self.per_epoch = iterations_per_epoch(len(self.train_data), config.schedule.batch_size)
        self.total = config.schedule.total_iterations(self.per_epoch)
        self.iteration = 0
        self.epoch_losses: list[float] = []
        self.best_mean_iu = 0.0
        self.val_scores: dict[str, Any] | None = None
        checkpoint = load_checkpoint(last) if resume else None
        if checkpoint is None:
            initialise(self.network, config, self.train_data)
        else:
            check_resumable(checkpoint, config, self.train_data.info, last)
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
        """To the end, or for `stop_after` iterations; returns the checkpoint written last."""
        try:
            return self._run(stop_after)
        except DatasetError as error:
            # From a worker it comes with a traceback as its text.
            raise DatasetError(str(error).rstrip().rpartition("DatasetError: ")[2]) from error
        except (RuntimeError, ValueError) as error:
            if advice := _advice(error, self.config):
                raise ConfigError(advice) from error
            raise
        finally:
            self.record.close()

    def _run(self, stop_after: int | None) -> Checkpoint:
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
        images_done, started = 0, time.perf_counter()
        self.network.train()
        with tqdm(
            total=self.total, initial=self.iteration, unit="it", desc=self.config.name
        ) as bar:
            for images, target in batches:
                self.epoch_losses.append(self._step(images, target))
                images_done += len(images)
                bar.update()
                bar.set_postfix(
                    loss=f"{self.epoch_losses[-1]:.3f}",
                    best=f"{self.best_mean_iu:.4f}",
                    refresh=False,
                )
                if self.iteration % self.per_epoch == 0 or self.iteration == self.total:
                    checkpoint = self._end_epoch(images_done / (time.perf_counter() - started))
                    images_done, started = 0, time.perf_counter()
                if self.iteration >= end:
                    break
        if checkpoint is None or checkpoint.iteration != self.iteration:
            checkpoint = self._checkpoint()
            save_checkpoint(self.run_dir / "last.pt", checkpoint)
        return checkpoint

    def _step(self, images: Tensor, target: Tensor) -> float:
        config = self.config
        set_rates(self.optimizer, rate_factor(self.iteration, self.total, config.schedule))
        images = images.to(self.device, non_blocking=True).float()
        target = target.to(self.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        kind = config.loss
        if kind.sample < 1:
            loss = sampled_cross_entropy(
                logits, target, kind.sample, kind.sample_cell_px, self.weights, kind.reduction
            )
        else:
            loss = cross_entropy(logits, target, self.weights, kind.reduction)
        if kind.dice:
            loss = loss + kind.dice * soft_dice(logits, target)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.iteration += 1
        if self.average is not None:
            self.average.update(self.network, self.iteration)
        value = loss.item()
        if not math.isfinite(value):
            raise ConfigError(
                f"the loss is {value} at iteration {self.iteration}: lower the learning rates"
            )
        return value

    def _end_epoch(self, images_per_s: float) -> Checkpoint:
        epoch = self.iteration // self.per_epoch
        scores = None
        if epoch % self.config.schedule.val_every_epochs == 0 or self.iteration == self.total:
            scores = self._validate()
        factor = rate_factor(self.iteration - 1, self.total, self.config.schedule)
        optimizer = self.config.optimizer
        self.record.epoch(
            iteration=self.iteration,
            epoch=epoch,
            loss=sum(self.epoch_losses) / len(self.epoch_losses),
            rates={
                "backbone_lr": factor * optimizer.backbone_lr,
                "head_lr": factor * optimizer.head_lr,
            },
            images_per_s=images_per_s,
            scores=scores,
        )
        self.epoch_losses = []
        best = self.run_dir / "best.pt"
        improved = scores is not None and (scores.mean_iu > self.best_mean_iu or not best.exists())
        if scores is not None:
            self.val_scores = scores.to_dict(self.record.names)
            self.best_mean_iu = max(self.best_mean_iu, scores.mean_iu)
        checkpoint = self._checkpoint()
        # The best first: interrupted in between, a resumed run repeats the epoch and both.
        if improved:
            save_checkpoint(best, checkpoint)
        save_checkpoint(self.run_dir / "last.pt", checkpoint)
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
        frequencies = self.train_data.class_frequencies(progress=True)
        weights = inverse_log_weights(frequencies, offset)
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
            cuda_random_state=torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            epoch_losses=list(self.epoch_losses),
            best_mean_iu=self.best_mean_iu,
            val_scores=self.val_scores,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.network.load_state_dict(checkpoint.weights)
        if self.average is not None and checkpoint.ema is not None:
            self.average.state = {
                name: value.to(self.device) for name, value in checkpoint.ema.items()
            }
        self.optimizer.load_state_dict(checkpoint.optimizer)
        torch.set_rng_state(checkpoint.random_state)
        if checkpoint.cuda_random_state is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint.cuda_random_state)
        self.iteration = checkpoint.iteration
        self.epoch_losses = list(checkpoint.epoch_losses)
        self.best_mean_iu = checkpoint.best_mean_iu
        self.val_scores = checkpoint.val_scores


def _advice(error: Exception, config: TrainConfig) -> str | None:
    """What to do about an error of torch that the recipe can avoid; None for any other."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in text:
        augment, batch_size = config.augment, config.schedule.batch_size
        if augment.crop_height is None:
            return (
                f"out of memory with {batch_size} whole images: lower schedule.batch_size, or set "
                "augment.crop_height and augment.crop_width"
            )
        return (
            f"out of memory with {batch_size} crops of {augment.crop_height}x{augment.crop_width}: "
            "lower schedule.batch_size, augment.crop_height or augment.crop_width"
        )
    if "DataLoader worker" in text:
        return (
            f"a process that reads images died ({text.splitlines()[0]}): lower data.workers, or "
            "give the container more shared memory"
        )
    if "Expected more than 1 value per channel" in text:
        return (
            "one crop is too small for batch norm, its map at stride 32 has one cell: raise "
            "schedule.batch_size or the crop above 32 pixels"
        )
    return None
