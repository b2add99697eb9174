"""Batches of augmented samples in an order that depends only on seed and iteration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from training.datasets.base import Sample, SegmentationDataset
from training.ranks import ALONE, Ranks
from training.transforms import Augmentation, pad

Key = tuple[int, int]
"""(epoch, index in the data set)"""


Batch = tuple[Tensor, Tensor]
"""uint8 images [N,3,h,w] RGB and uint8 targets [N,h,w]; of other data sets as in `Sample`."""


class _Augmented(Dataset[Sample]):
    def __init__(self, data: SegmentationDataset, augment: Augmentation, seed: int) -> None:
        self.data, self.augment, self.seed = data, augment, seed

    def __getitem__(self, key: Key) -> Sample:
        rng = np.random.default_rng((self.seed, *key))
        return self.augment(self.data[key[1]], rng, self.data.info.modality)


def _collate(samples: list[Sample]) -> Batch:
    """Whole images of different sizes are padded with void to the largest of their batch."""
    images, target = default_collate([
        (torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(target))
        for image, target in pad(samples)
    ])  # fmt: skip
    return images, target


@dataclass(frozen=True, slots=True)
class Division:
    """How an epoch's images are divided: into steps, these into batches that are computed at a
    time, and each of these among the processes."""

    length: int
    """Images of an epoch."""
    batch_size: int
    accumulate: int = 1
    """Batches whose gradients make one step."""

    @property
    def step_size(self) -> int:
        """Images a step, of all processes: all there are if they are too few for one."""
        return min(self.batch_size * self.accumulate, self.length)

    @property
    def batches_per_step(self) -> int:
        return -(-self.step_size // self.batch_size)

    @property
    def smallest_batch(self) -> int:
        return self.step_size // self.batches_per_step

    @property
    def steps_per_epoch(self) -> int:
        """The last, short step of an epoch is dropped, since norms learn nothing good from one or
        two images."""
        return self.length // self.step_size

    def batches(self, step: Sequence[int], ranks: Ranks) -> Iterator[list[int]]:
        """This process's part of each batch of a step."""
        for batch in np.array_split(np.asarray(step), self.batches_per_step):
            yield ranks.share(batch.tolist())


class _Order(Sampler[list[Key]]):
    """This process's batches of the steps `start` to `total`."""

    def __init__(
        self, division: Division, seed: int, start: int, total: int, ranks: Ranks = ALONE
    ) -> None:
        self.division, self.seed, self.ranks = division, seed, ranks
        self.start, self.total = start, total

    def __iter__(self) -> Iterator[list[Key]]:
        size = self.division.step_size
        for iteration in range(self.start, self.total):
            epoch, step = divmod(iteration, self.division.steps_per_epoch)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.division.length)
            chosen = order[step * size : (step + 1) * size].tolist()
            for batch in self.division.batches(chosen, self.ranks):
                yield [(epoch, index) for index in batch]

    def __len__(self) -> int:
        return (self.total - self.start) * self.division.batches_per_step


def training_batches(
    data: SegmentationDataset,
    augment: Augmentation,
    *,
    batch_size: int,
    seed: int,
    start: int,
    total: int,
    workers: int,
    accumulate: int = 1,
    ranks: Ranks = ALONE,
) -> DataLoader[Batch]:
    """Images (channels last in memory) and targets: of each of the steps `start` to `total` as
    many batches as `Division` makes of it."""
    division = Division(len(data), batch_size, accumulate)
    dataset: Dataset[Any] = _Augmented(data, augment, seed)
    return DataLoader(
        dataset,
        collate_fn=_collate,
        batch_sampler=_Order(division, seed, start, total, ranks),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        persistent_workers=False,
        # Each pass draws a number for its workers, which none of ours uses: from a generator of
        # its own, so that torch's (dropout) goes on after a resume where it stood.
        generator=torch.Generator(),
    )
