"""Runs the training loop."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from model.build import build
from model.network import SegmentationNetwork
from training.advice import advice
from training.analysis.masking import mask_images
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.config import ConfigError, DataConfig, TrainConfig
from training.datasets import DatasetError, SegmentationDataset, open_dataset
from training.datasets.coverage import Coverage
from training.datasets.hold_out import hold_out
from training.datasets.resize import Resized
from training.datasets.taught import Taught
from training.distributed import SINGLE, World
from training.environment import environment, git_revision
from training.evaluation.metrics import Scores
from training.initialise import check_fits, initialise
from training.learner import Learner
from training.loader import EpochPlan, Step, step_loader
from training.losses import inverse_log_weights
from training.resume import check_new, check_resumable, warn
from training.run_log import RunLog
from training.teacher import load_teacher
from training.validation import validate

_NORM_BATCH = 32
"""Crops that a process measures norms on at a time: 8 gave noisy statistics, 96 the same."""

OpenLog = Callable[..., RunLog]


def train(
    config: TrainConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    world: World = SINGLE,
    run_log: OpenLog | None = RunLog,
) -> Checkpoint:
    """Train to the end of the schedule; returns the last checkpoint.

    Writes `run_dir/last.pt` after every epoch, `best.pt` when val mean IU rises, config.json,
    log.csv, curves.png and tensorboard/ (none of them with `run_log=None`). `resume` continues from
    last.pt exactly: weights, optimiser, schedule, average, iteration and random state; `stop_after`
    ends early after that many iterations, as an interruption would. The main process writes.

    Raises: ConfigError, DatasetError, CheckpointError.
    """
    trainer = Trainer(config, run_dir, resume=resume, world=world, run_log=run_log)
    return trainer.run(stop_after)


class Trainer:
    """Holds one run: its data, what it has learned, and its files."""

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        *,
        resume: bool,
        world: World = SINGLE,
        run_log: OpenLog | None = RunLog,
    ) -> None:
        if config.data.root is None:
            raise ConfigError("data.root is not set: say where the data set lies, data.root=DIR")
        self.config, self.run_dir, self.world = config, run_dir, world
        last = run_dir / "last.pt"
        if not resume:
            check_new(run_dir, quiet=not world.is_main)
        if config.threads:
            torch.set_num_threads(config.threads)
        # Every process its own: dropout must differ, as the images do. The main one's weights are
        # everybody's.
        torch.manual_seed(config.seed + world.rank)
        data = config.data
        self.train_data, self.val_data = (
            mask_images(Resized(split, data.resize) if data.resize else split, data.mask)
            for split in _open_splits(data, config.data.root)
        )
        if config.distill.maps is not None:
            self.train_data = Taught(self.train_data, config.distill.maps)
        check_fits(config, self.train_data.info)
        if world.is_main and not resume:
            _look_for_classes(self.train_data, self.val_data, data.allow_absent)
        self.network = build(config.network, self.train_data.info.head_sizes)
        schedule = config.schedule
        self.plan = EpochPlan(len(self.train_data), schedule.batch_size, schedule.accumulate)
        _check_divisible(self.plan, world)
        self.total = schedule.total_iterations(self.plan.steps_per_epoch)
        self.epoch_losses: list[float] = []
        self.best_mean_iu, self.best_iteration = 0.0, 0
        self.val_scores: dict[str, Any] | None = None
        checkpoint = load_checkpoint(last) if resume else None
        if checkpoint is not None:
            check_resumable(checkpoint, config, self.train_data.info, last)
        elif world.is_main:
            initialise(self.network, config, self.train_data)
        self.learner = Learner(
            self.network, config, self.total, self._class_weights(), world, self._teacher()
        )
        if checkpoint is not None:
            self._restore(checkpoint)
        self.run_log: RunLog | None = None
        if world.is_main:
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
            if run_log is not None:
                classes = self.train_data.info.classes
                self.run_log = run_log(run_dir, classes, self.learner.iteration)

    def run(self, stop_after: int | None = None) -> Checkpoint:
        """Train to the end, or for `stop_after` iterations; returns the checkpoint written last."""
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
            if self.run_log is not None:
                self.run_log.close()

    def _run(self, stop_after: int | None) -> Checkpoint:
        learner, per_epoch = self.learner, self.plan.steps_per_epoch
        begun = learner.iteration
        end = self.total if stop_after is None else min(self.total, begun + stop_after)
        checkpoint: Checkpoint | None = None
        images_done, started = 0, time.perf_counter()
        self.network.train()
        with tqdm(
            total=self.total,
            initial=begun,
            unit="it",
            desc=self.config.name,
            disable=not self.world.is_main,
        ) as bar:
            for step in self._steps() if not self._stalled else ():
                self.epoch_losses.append(learner.step(step))
                images_done += self.plan.step_size
                bar.update()
                bar.set_postfix(
                    loss=f"{self.epoch_losses[-1]:.3f}",
                    best=f"{self.best_mean_iu:.4f}",
                    refresh=False,
                )
                if learner.iteration % per_epoch == 0 or learner.iteration == self.total:
                    checkpoint = self._end_epoch(images_done / (time.perf_counter() - started))
                    images_done, started = 0, time.perf_counter()
                if learner.iteration >= end or self._stalled:
                    break
        if self._stalled and self.world.is_main:
            tqdm.write(
                f"ended early: no better val mean IU since iteration {self.best_iteration} "
                f"(schedule.patience={self.config.schedule.patience})"
            )
        if checkpoint is None or checkpoint.iteration != learner.iteration:
            checkpoint = self._checkpoint()
            self._save("last.pt", checkpoint)
        self.world.barrier()  # for the main process to have written it
        return checkpoint

    def _steps(self) -> DataLoader[Step]:
        """Load this process's part of the iterations still to do."""
        return step_loader(
            self.train_data,
            self.config.augment,
            self.plan,
            seed=self.config.seed,
            start=self.learner.iteration,
            total=self.total,
            workers=self.config.data.workers,
            world=self.world,
            pin_memory=self.learner.device.type == "cuda",
        )

    def _end_epoch(self, images_per_s: float) -> Checkpoint:
        iteration = self.learner.iteration
        epoch = iteration // self.plan.steps_per_epoch
        scores: Scores | None = None
        if epoch % self.config.schedule.val_every_epochs == 0 or iteration == self.total:
            self._measure_norms()
            confusion = validate(self.learner, self.val_data, self.run_log)
            scores = confusion.scores()
            self.val_scores = confusion.to_dict(self.train_data.info.class_names)
            if self.world.is_main:
                tqdm.write(f"iteration {iteration}: val mean IU {scores.mean_iu:.4f}")
        if self.run_log is not None:
            self._log(self.run_log, epoch, images_per_s, scores)
        self.epoch_losses = []
        improved = scores is not None and scores.mean_iu > self.best_mean_iu
        if scores is not None and improved:
            self.best_mean_iu, self.best_iteration = scores.mean_iu, iteration
        checkpoint = self._checkpoint()
        # The best first: interrupted in between, a resumed run repeats the epoch and both.
        if improved or (scores is not None and not (self.run_dir / "best.pt").exists()):
            self._save("best.pt", checkpoint)
        self._save("last.pt", checkpoint)
        return checkpoint

    def _measure_norms(self) -> None:
        """Measure the norms as `schedule.norm_images` says."""
        count = min(self.config.schedule.norm_images, len(self.train_data))
        if not count:
            return
        batch = max(self.world.size, min(_NORM_BATCH * self.world.size, count))
        steps = step_loader(
            self.train_data,
            replace(self.config.augment, mix=0),  # as what will be segmented: unmixed
            EpochPlan(len(self.train_data), batch),
            seed=self.config.seed + 1,
            start=0,
            total=-(-count // batch),
            workers=0,
            world=self.world,
        )
        self.learner.measure_norms(steps)

    @property
    def _stalled(self) -> bool:
        """Tell whether the last `schedule.patience` validations brought nothing better."""
        schedule = self.config.schedule
        if schedule.patience is None:
            return False
        between = schedule.val_every_epochs * self.plan.steps_per_epoch
        return self.learner.iteration - self.best_iteration >= schedule.patience * between

    def _log(self, run_log: RunLog, epoch: int, images_per_s: float, scores: Scores | None) -> None:
        iteration, optimizer = self.learner.iteration, self.config.optimizer
        factor = self.learner.lr_factor(iteration - 1)
        run_log.epoch(
            iteration=iteration,
            epoch=epoch,
            loss=sum(self.epoch_losses) / len(self.epoch_losses),
            learning_rates={
                "backbone_lr": factor * optimizer.backbone_lr,
                "head_lr": factor * optimizer.head_lr,
            },
            images_per_s=images_per_s,
            scores=scores,
        )

    def _save(self, name: str, checkpoint: Checkpoint) -> None:
        if self.world.is_main:
            save_checkpoint(self.run_dir / name, checkpoint)

    def _class_weights(self) -> Tensor | None:
        offset = self.config.loss.class_weight_offset
        if offset is None:
            return None
        frequencies = self.train_data.class_frequencies(progress=self.world.is_main)
        return inverse_log_weights(frequencies, offset).to(self.world.device())

    def _teacher(self) -> SegmentationNetwork | None:
        path = self.config.distill.teacher
        return None if path is None else load_teacher(path, self.train_data.info)

    def _checkpoint(self) -> Checkpoint:
        """Collect the state of the run. Every process must ask: its random state is part of it."""
        learner, world = self.learner, self.world
        on_gpu = learner.device.type == "cuda"
        return Checkpoint(
            network=self.config.network,
            dataset=self.train_data.info,
            config=json.loads(self.config.model_dump_json()),
            git_revision=git_revision(),
            environment=environment(learner.device),
            iteration=learner.iteration,
            weights=self.network.state_dict(),
            ema=learner.average.state if learner.average else None,
            optimizer=learner.optimizer.state_dict(),
            random_states=world.gather(torch.get_rng_state()),
            cuda_random_states=world.gather(torch.cuda.get_rng_state()) if on_gpu else [],
            epoch_losses=list(self.epoch_losses),
            best_mean_iu=self.best_mean_iu,
            val_scores=self.val_scores,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.learner.restore(checkpoint)
        self.epoch_losses = list(checkpoint.epoch_losses)
        self.best_mean_iu = checkpoint.best_mean_iu
        self.val_scores = checkpoint.val_scores
        if (best := self.run_dir / "best.pt").exists():
            self.best_iteration = load_checkpoint(best, mmap=True).iteration


def _open_splits(data: DataConfig, root: Path) -> Iterable[SegmentationDataset]:
    """Open what is learned from and what is validated on. Raises: DatasetError."""
    learned = open_dataset(data.dataset, root, data.train_split, data.classes)
    if data.hold_out is not None:
        return hold_out(learned, data.hold_out)
    return learned, open_dataset(data.dataset, root, data.val_split, data.classes)


def _look_for_classes(
    train_data: SegmentationDataset, val_data: SegmentationDataset, allow_absent: bool
) -> None:
    """Warn of classes that no label of a split holds.

    Raises: DatasetError if a split has no labelled pixel, or a class none in all of `train_data`:
    what was never seen cannot be learned.
    """
    for data in (train_data, val_data):
        coverage = Coverage.of(data, progress=True)
        if data is train_data and coverage.absent and coverage.is_whole and not allow_absent:
            raise DatasetError(
                f"{coverage.warning}. Nothing can be learned of it: give it pixels, leave it out "
                "of the class list, or train all the same with data.allow_absent=true"
            )
        if coverage.warning:
            warn(coverage.warning)


def _check_divisible(plan: EpochPlan, world: World) -> None:
    if plan.smallest_batch < world.size:
        raise ConfigError(
            f"a batch of {plan.smallest_batch} cannot be divided among {world.size} "
            "processes: raise schedule.batch_size (and lower schedule.accumulate), or start fewer"
        )
