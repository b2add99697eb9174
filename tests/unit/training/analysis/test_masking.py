"""Masked images still show this, on one row: background, object, void, another object."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from tests.unit.training import miniatures
from training.analysis.masking import (
    MEAN,
    Mask,
    background_class,
    foreground_mean_iu,
    hide_background,
    hide_foreground,
    mask_images,
    shape,
)
from training.datasets import DatasetError, open_dataset
from training.datasets.base import VOID, Sample
from training.evaluation.metrics import Confusion, ScoreError

FILL, NINE = (1, 2, 3), (9, 9, 9)
SEEN = [[10, 11, 12], [20, 21, 22], [30, 31, 32], [40, 41, 42]]


@pytest.fixture
def sample() -> Sample:
    return Sample(np.array([SEEN], np.uint8), np.array([[0, 3, VOID, 1]], np.uint8))


@pytest.mark.parametrize(
    ("mask", "row"),
    [
        (partial(hide_foreground, fill=FILL), [SEEN[0], FILL, FILL, FILL]),
        (partial(hide_background, fill=FILL), [FILL, SEEN[1], FILL, SEEN[3]]),
        (partial(shape, foreground=NINE, rest=FILL), [FILL, NINE, FILL, NINE]),
    ],
    ids=["foreground", "background", "shape"],
)
def test_what_is_left(sample: Sample, mask: Any, row: list[Any]) -> None:
    masked = mask(sample)
    assert masked.image.tolist() == [[list(pixel) for pixel in row]]
    assert masked.target is sample.target


def test_another_class_may_be_the_background(sample: Sample) -> None:
    assert hide_foreground(sample, FILL, background=3).image[0, 1].tolist() == SEEN[1]
    assert hide_background(sample, FILL, background=3).image[0, :2].tolist() == [SEEN[0], [1, 2, 3]]
    shown = shape(sample, (9, 9, 9), FILL, background=3).image[0, :, 0]
    assert shown.tolist() == [9, 1, 1, 9]


def test_shape_tells_where_but_not_which(sample: Sample) -> None:
    masked = shape(sample, NINE, FILL)
    other = Sample(255 - sample.image, np.array([[0, 1, VOID, 2]], np.uint8))
    assert (shape(other, NINE, FILL).image == masked.image).all()


@pytest.mark.parametrize("mask", [hide_foreground, hide_background, shape])
def test_images_stay_uint8_and_the_original_unchanged(sample: Sample, mask: object) -> None:
    masked = mask(sample)  # type: ignore[operator]
    assert masked.image.dtype == np.uint8
    assert masked.image.shape == (1, 4, 3)
    assert sample.image.tolist() == [SEEN]
    assert masked.image[0, 2].tolist() == list(MEAN)


def test_a_shape_in_one_colour_is_refused(sample: Sample) -> None:
    with pytest.raises(ValueError, match=r"both \(1, 2, 3\)"):
        shape(sample, FILL, FILL)


def test_foreground_mean_iu() -> None:
    """IUs 8/10, 1/3 and none (class 2 occurs nowhere)."""
    confusion = Confusion(3)
    confusion.counts[:] = [[8, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert foreground_mean_iu(confusion.scores()) == pytest.approx(1 / 3)
    assert foreground_mean_iu(confusion.scores(), background=1) == pytest.approx(8 / 10)


def test_nothing_but_background() -> None:
    confusion = Confusion(2)
    confusion.counts[0, 0] = 5
    with pytest.raises(ScoreError, match="no class but the background"):
        foreground_mean_iu(confusion.scores())


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    miniatures.voc(tmp_path, 2011, {"val": ["2008_000001"]})
    return tmp_path


def test_a_data_set_behind_a_mask(voc: Path) -> None:
    """VOC's background is class 0; nothing but the images changes."""
    data = open_dataset("voc2011", voc, "val")
    plain = data[0]
    masked = {mask: mask_images(data, mask) for mask in get_args(Mask)}
    assert masked["all"] is data
    for mask, wanted in {
        "foreground": hide_background(plain),
        "background": hide_foreground(plain),
        "shape": shape(plain),
    }.items():
        part = masked[mask]
        assert (part[0].image == wanted.image).all()
        assert (part[0].image != plain.image).any()
        assert (part[0].target == plain.target).all()
        assert (part.target(0) == plain.target).all()
        assert (part.info, part.pairs, part.split) == (data.info, data.pairs, "val")


def test_nothing_is_called_background(streets: Path) -> None:
    data = open_dataset("folder", streets, "val")
    assert background_class(data) is None
    with pytest.raises(DatasetError, match=r"has no class 'background'.*leave out .*\(shape\)"):
        mask_images(data, "shape")
