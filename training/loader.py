"""Loads steps of augmented batches, in an order that depends only on seed and iteration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from training.datasets.base import Sample, SegmentationDataset
from training.distributed import SINGLE, World
from training.transforms import Augmentation, mix_classes, pad

Key = tuple[int, int]
"""(epoch, index in the data set)"""

Batch = tuple[Tensor, Tensor]
"""uint8 images [N,3,h,w] RGB and uint8 targets [N,h,w]; of other data sets as in `Sample`."""

Step = Sequence[Batch]
"""One process's part of an iteration: batches that are computed one after the other."""


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """Divides an epoch's images into steps, these into batches that are computed at a
    time, and each of these among the processes."""

    length: int
    """Images of an epoch."""
    batch_size: int
    accumulate: int = 1
    """Batches whose gradients make one step."""

    @property
    def step_size(self) -> int:
        """Count the images of a step, of all processes: all there are if they are too few for
        one."""
        return min(self.batch_size * self.accumulate, self.length)

    @property
    def batches_per_step(self) -> int:
        return -(-self.step_size // self.batch_size)

    @property
    def smallest_batch(self) -> int:
        return self.step_size // self.batches_per_step

    @property
    def steps_per_epoch(self) -> int:
        """Count whole steps. The last, short step of an epoch is dropped, since norms learn nothing
        good from one or two images."""
        return self.length // self.step_size

    def batches(self, step: Sequence[int], world: World) -> list[list[int]]:
        """Take this process's part of each batch of a step."""
        parts = np.array_split(np.asarray(step), self.batches_per_step)
        return [world.share(part.tolist()) for part in parts]


class StepSampler(Sampler[list[list[Key]]]):
    """Yields this process's batches of the steps `start` to `total`, a step at a time."""

    def __init__(
        self, plan: EpochPlan, seed: int, start: int, total: int, world: World = SINGLE
    ) -> None:
        self.plan, self.seed, self.world = plan, seed, world
        self.start, self.total = start, total

    def __iter__(self) -> Iterator[list[list[Key]]]:
        size = self.plan.step_size
        for iteration in range(self.start, self.total):
            epoch, step = divmod(iteration, self.plan.steps_per_epoch)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.plan.length)
            chosen = order[step * size : (step + 1) * size].tolist()
            yield [
                [(epoch, index) for index in batch]
                for batch in self.plan.batches(chosen, self.world)
            ]

    def __len__(self) -> int:
        return self.total - self.start


class _Augmented(Dataset[list[Sample]]):
    """Reads a batch of augmented samples for a list of keys."""

    def __init__(self, data: SegmentationDataset, augment: Augmentation, seed: int) -> None:
        self.data, self.augment, self.seed = data, augment, seed

    def __getitem__(self, keys: list[Key]) -> list[Sample]:
        return [self._sample(key) for key in keys]

    def _sample(self, key: Key) -> Sample:
        rng = np.random.default_rng((self.seed, *key))
        sample = self._crop(key[1], rng)
        if not self.augment.mix or rng.random() >= self.augment.mix:
            return sample
        other = self._crop(int(rng.integers(len(self.data))), rng)  # of any image, this one too
        return mix_classes(sample, other, rng)

    def _crop(self, index: int, rng: np.random.Generator) -> Sample:
        return self.augment(self.data[index], rng, self.data.info.modality)


def _collate(step: list[list[Sample]]) -> Step:
    """Pad whole images of different sizes with void to the largest of their batch."""
    return [_batch(samples) for samples in step]


def _batch(samples: list[Sample]) -> Batch:
    images, target = default_collate([
        (torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(target))
        for image, target in pad(samples)
    ])  # fmt: skip
    return images, target


def step_loader(
    data: SegmentationDataset,
    augment: Augmentation,
    plan: EpochPlan,
    *,
    seed: int,
    start: int,
    total: int,
    workers: int,
    world: World = SINGLE,
    pin_memory: bool = False,
) -> DataLoader[Step]:
    """Load the steps `start` to `total`, images channels last in memory.

    `pin_memory`: into page-locked memory, from which a GPU copies while it computes.
    """
    dataset: Dataset[Any] = _Augmented(data, augment, seed)
    return DataLoader(
        dataset,
        collate_fn=_collate,
        batch_sampler=StepSampler(plan, seed, start, total, world),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        persistent_workers=False,
        pin_memory=pin_memory,
        # Each pass draws a number for its workers, which none of ours uses: from a generator of
        # its own, so that torch's (dropout) goes on after a resume where it stood.
        generator=torch.Generator(),
    )
