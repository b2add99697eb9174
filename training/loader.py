"""Batches of augmented samples in an order that depends only on seed and iteration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from training.datasets.base import Sample, SegmentationDataset
from training.transforms import Augmentation, pad

Key = tuple[int, int]
"""(epoch, index in the data set)"""


class _Augmented(Dataset[Sample]):
    def __init__(self, data: SegmentationDataset, augment: Augmentation, seed: int) -> None:
        self.data, self.augment, self.seed = data, augment, seed

    def __getitem__(self, key: Key) -> Sample:
        rng = np.random.default_rng((self.seed, *key))
        return self.augment(self.data[key[1]], rng, self.data.info.modality)


def _collate(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Whole images of different sizes are padded with void to the largest of their batch."""
    images, target = default_collate([
        (torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(target))
        for image, target in pad(samples)
    ])  # fmt: skip
    return images, target


class _Order(Sampler[list[Key]]):
    """Batches from iteration `start` to `total`; the last, short batch of an epoch is dropped
    (unless it is the only one), since norms learn nothing good from one or two images."""

    def __init__(self, length: int, batch_size: int, seed: int, start: int, total: int) -> None:
        self.length, self.seed = length, seed
        self.batch_size = min(batch_size, length)
        self.start, self.total = start, total

    def __iter__(self) -> Iterator[list[Key]]:
        per_epoch = self.length // self.batch_size
        for iteration in range(self.start, self.total):
            epoch, step = divmod(iteration, per_epoch)
            order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in chosen]

    def __len__(self) -> int:
        return self.total - self.start


def iterations_per_epoch(length: int, batch_size: int) -> int:
    return length // min(batch_size, length)


def training_batches(
    data: SegmentationDataset,
    augment: Augmentation,
    *,
    batch_size: int,
    seed: int,
    start: int,
    total: int,
    workers: int,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """uint8 images [N,3,h,w] RGB (channels last in memory) and uint8 targets [N,h,w]."""
    dataset: Dataset[Any] = _Augmented(data, augment, seed)
    return DataLoader(
        dataset,
        collate_fn=_collate,
        batch_sampler=_Order(len(data), batch_size, seed, start, total),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        persistent_workers=False,
        # Each pass draws a number for its workers, which none of ours uses: from a generator of
        # its own, so that torch's (dropout) goes on after a resume where it stood.
        generator=torch.Generator(),
    )
