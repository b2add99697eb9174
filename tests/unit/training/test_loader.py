"""The order and the augmentation depend on seed and iteration, and on nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from training.datasets import SegmentationDataset, drawn, open_dataset
from training.loader import EpochPlan, StepSampler, step_loader
from training.transforms import Augmentation

AUGMENT = Augmentation(crop_height=32, crop_width=32)
Batch = tuple[Tensor, Tensor]


def dataset(streets: Path) -> SegmentationDataset:
    return open_dataset("folder", streets, "train")


def batches(
    streets: Path,
    *,
    start: int = 0,
    total: int = 5,
    workers: int = 0,
    seed: int = 3,
    augment: Augmentation = AUGMENT,
) -> list[Batch]:
    """Steps of a batch of 2 from 6 scenes: 3 iterations an epoch."""
    loader = step_loader(
        dataset(streets),
        augment,
        EpochPlan(6, 2),
        seed=seed,
        start=start,
        total=total,
        workers=workers,
    )
    return [(images.clone(), target.clone()) for ((images, target),) in loader]


def equal(some: list[Batch], others: list[Batch]) -> bool:
    return len(some) == len(others) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
        for a, b in zip(some, others, strict=True)
    )


def test_shapes_and_types(streets: Path) -> None:
    images, target = batches(streets, total=1)[0]
    assert (images.shape, images.dtype) == ((2, 3, 32, 32), torch.uint8)
    assert (target.shape, target.dtype) == ((2, 32, 32), torch.uint8)


@pytest.mark.parametrize("workers", [0, 1])
def test_whole_images_of_different_sizes_share_a_batch(tmp_path: Path, workers: int) -> None:
    """Padded with void; a batch of one is as large as its image."""
    drawn.write(tmp_path, "train", 1, 24, 40, seed=0)
    drawn.write(tmp_path / "other", "train", 1, 32, 36, seed=0)
    (image,), (label,) = (
        list((tmp_path / f"other/train/{kind}").iterdir()) for kind in ("images", "labels")
    )
    image.rename(tmp_path / f"train/images/other{image.suffix}")
    label.rename(tmp_path / f"train/labels/other{label.suffix}")
    whole = Augmentation(crop_height=None, crop_width=None, min_scale=1.0, max_scale=1.0)
    data = open_dataset("folder", tmp_path, "train")
    fields: dict[str, Any] = {"seed": 0, "start": 0, "workers": workers}
    (((images, target),),) = step_loader(data, whole, EpochPlan(2, 2), total=1, **fields)
    assert (images.shape, target.shape) == ((2, 3, 32, 40), (2, 32, 40))
    sizes = {tuple(data[index].target.shape) for index in range(2)}
    assert sizes == {(24, 40), (32, 36)}
    labelled = sum(int((data[index].target != 255).sum()) for index in range(2))
    assert int((target != 255).sum()) == labelled
    alone = step_loader(data, whole, EpochPlan(2, 1), total=2, **fields)
    assert {tuple(target.shape[1:]) for ((_, target),) in alone} == sizes


def test_a_worker_process_changes_nothing(streets: Path) -> None:
    assert equal(batches(streets, workers=0), batches(streets, workers=1))


def test_resumed_order_is_the_rest_of_the_order(streets: Path) -> None:
    """From the middle of an epoch, and with it the same augmentation."""
    assert equal(batches(streets)[2:], batches(streets, start=2))


def test_mixing_leaves_the_other_crops_as_they_are(streets: Path) -> None:
    """And depends on seed, epoch and index alone, too."""
    plain, mixed, always = (
        batches(streets, augment=replace(AUGMENT, mix=share)) for share in (0.0, 0.5, 1.0)
    )
    assert equal(plain, batches(streets))
    assert not equal(mixed, plain)
    assert equal(mixed[2:], batches(streets, start=2, workers=1, augment=replace(AUGMENT, mix=0.5)))
    crops = [torch.cat([images for images, _ in each]) for each in (plain, mixed, always)]
    for before, some, all_of_them in zip(*crops, strict=True):
        assert torch.equal(some, before) or torch.equal(some, all_of_them)


def test_seed_decides(streets: Path) -> None:
    assert equal(batches(streets), batches(streets))
    assert not equal(batches(streets), batches(streets, seed=4))


def test_epochs_differ(streets: Path) -> None:
    assert not equal(batches(streets, total=3), batches(streets, start=3, total=6))


def test_each_epoch_takes_each_scene_once() -> None:
    order = list(StepSampler(EpochPlan(6, 2), seed=0, start=0, total=9))
    for epoch in range(3):
        keys = [key for (batch,) in order[3 * epoch : 3 * epoch + 3] for key in batch]
        assert {epoch_of for epoch_of, _ in keys} == {epoch}
        assert sorted(index for _, index in keys) == list(range(6))
    assert len({tuple(batch) for (batch,) in order}) == 9


def test_a_short_last_batch_is_dropped_unless_it_is_the_only_one() -> None:
    assert EpochPlan(7, 2).steps_per_epoch == 3
    assert [len(batch) for (batch,) in StepSampler(EpochPlan(7, 2), seed=0, start=0, total=6)] == [
        2
    ] * 6
    assert EpochPlan(3, 8).steps_per_epoch == 1
    assert [len(batch) for (batch,) in StepSampler(EpochPlan(3, 8), seed=0, start=0, total=2)] == [
        3,
        3,
    ]


def test_a_step_is_its_batches(streets: Path) -> None:
    """Each padded and collated on its own, together the images of the large batch, in order."""
    fields: dict[str, Any] = {"seed": 0, "start": 0, "total": 1, "workers": 0}
    (parts,) = step_loader(dataset(streets), AUGMENT, EpochPlan(6, 2, accumulate=2), **fields)
    ((whole,),) = step_loader(dataset(streets), AUGMENT, EpochPlan(6, 4), **fields)
    assert [len(target) for _, target in parts] == [2, 2]
    for part, wanted in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(part), wanted)


@pytest.mark.parametrize("pinned", [False, True])
def test_pages_are_locked_on_request(streets: Path, pinned: bool) -> None:
    loader = step_loader(
        dataset(streets), AUGMENT, EpochPlan(6, 2),
        seed=0, start=0, total=1, workers=0, pin_memory=pinned,
    )  # fmt: skip
    assert loader.pin_memory is pinned


def test_reading_leaves_the_random_numbers_of_torch_alone(streets: Path) -> None:
    """Else dropout after a resume would not be what it would have been."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(streets, total=2)
    assert torch.equal(torch.get_rng_state(), before)
