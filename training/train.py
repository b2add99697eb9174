"""The training loop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from model.build import build
from training.advice import advice
from training.analysis.masking import show
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import ConfigError, TrainConfig
from training.datasets import DatasetError, open_dataset
from training.initialise import check_fits, initialise
from training.learner import Learner
from training.loader import iterations_per_epoch, training_batches
from training.losses import inverse_log_weights
from training.metrics import Scores
from training.record import Record
from training.resume import check_resumable
from training.revision import git_revision
from training.validation import validate


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
    """One run: its data, what it has learned, and its files."""

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
        check_fits(config, self.train_data.info)
        self.network = build(config.network, self.train_data.info.head_sizes)
        self.per_epoch = iterations_per_epoch(len(self.train_data), config.schedule.batch_size)
        self.total = config.schedule.total_iterations(self.per_epoch)
        self.epoch_losses: list[float] = []
        self.best_mean_iu = 0.0
        self.val_scores: dict[str, Any] | None = None
        checkpoint = load_checkpoint(last) if resume else None
        if checkpoint is None:
            initialise(self.network, config, self.train_data)
        else:
            check_resumable(checkpoint, config, self.train_data.info, last)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        class_weights = self._class_weights(device)
        self.learner = Learner(self.network, config, self.total, device, class_weights)
        if checkpoint is not None:
            self._restore(checkpoint)
        self.record = Record(run_dir, self.train_data.info.classes, self.learner.iteration)
        (run_dir / "config.json").write_text(config.model_dump_json(indent=2) + "\n")

    def run(self, stop_after: int | None = None) -> Checkpoint:
        """To the end, or for `stop_after` iterations; returns the checkpoint written last."""
        try:
            return self._run(stop_after)
        except DatasetError as error:
            # From a worker it comes with a traceback as its text.
            raise DatasetError(str(error).rstrip().rpartition("DatasetError: ")[2]) from error
        except (RuntimeError, ValueError) as error:
            if sentence := advice(error, self.config):
                raise ConfigError(sentence) from error
            raise
        finally:
            self.record.close()

    def _run(self, stop_after: int | None) -> Checkpoint:
        learner, schedule = self.learner, self.config.schedule
        begun = learner.iteration
        batches = training_batches(
            self.train_data,
            self.config.augment,
            batch_size=schedule.batch_size,
            seed=self.config.seed,
            start=begun,
            total=self.total,
            workers=self.config.data.workers,
        )
        end = self.total if stop_after is None else min(self.total, begun + stop_after)
        checkpoint: Checkpoint | None = None
        images_done, started = 0, time.perf_counter()
        self.network.train()
        with tqdm(total=self.total, initial=begun, unit="it", desc=self.config.name) as bar:
            for images, target in batches:
                self.epoch_losses.append(learner.step(images, target))
                images_done += len(images)
                bar.update()
                bar.set_postfix(
                    loss=f"{self.epoch_losses[-1]:.3f}",
                    best=f"{self.best_mean_iu:.4f}",
                    refresh=False,
                )
                if learner.iteration % self.per_epoch == 0 or learner.iteration == self.total:
                    checkpoint = self._end_epoch(images_done / (time.perf_counter() - started))
                    images_done, started = 0, time.perf_counter()
                if learner.iteration >= end:
                    break
        if checkpoint is None or checkpoint.iteration != learner.iteration:
            checkpoint = self._checkpoint()
            save_checkpoint(self.run_dir / "last.pt", checkpoint)
        return checkpoint

    def _end_epoch(self, images_per_s: float) -> Checkpoint:
        iteration = self.learner.iteration
        epoch = iteration // self.per_epoch
        scores: Scores | None = None
        if epoch % self.config.schedule.val_every_epochs == 0 or iteration == self.total:
            scores = validate(self.learner, self.val_data, self.record)
            tqdm.write(f"iteration {iteration}: val mean IU {scores.mean_iu:.4f}")
        factor = self.learner.rate_factor(iteration - 1)
        optimizer = self.config.optimizer
        self.record.epoch(
            iteration=iteration,
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

    def _class_weights(self, device: torch.device) -> Tensor | None:
        offset = self.config.loss.class_weight_offset
        if offset is None:
            return None
        frequencies = self.train_data.class_frequencies(progress=True)
        return inverse_log_weights(frequencies, offset).to(device)

    def _checkpoint(self) -> Checkpoint:
        learner = self.learner
        on_gpu = learner.device.type == "cuda"
        return Checkpoint(
            network=self.config.network,
            dataset=self.train_data.info,
            config=json.loads(self.config.model_dump_json()),
            git_revision=git_revision(),
            iteration=learner.iteration,
            weights=self.network.state_dict(),
            ema=learner.average.state if learner.average else None,
            optimizer=learner.optimizer.state_dict(),
            random_state=torch.get_rng_state(),
            cuda_random_state=torch.cuda.get_rng_state() if on_gpu else None,
            epoch_losses=list(self.epoch_losses),
            best_mean_iu=self.best_mean_iu,
            val_scores=self.val_scores,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.learner.restore(checkpoint)
        self.epoch_losses = list(checkpoint.epoch_losses)
        self.best_mean_iu = checkpoint.best_mean_iu
        self.val_scores = checkpoint.val_scores
