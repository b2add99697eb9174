"""Large images scaled down while they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.training import nyu
from tests.unit.training.conftest import HEIGHT, WIDTH
from tests.unit.training.recipes import MakeConfig
from training.datasets import DatasetError, open_dataset
from training.datasets.resize import Resized, shrunk_size
from training.train import train


@pytest.mark.parametrize(
    ("size", "longest", "wanted"),
    [((300, 400), 100, (75, 100)), ((40, 30), 100, (40, 30)), ((1, 5000), 50, (1, 50))],
)
def test_sizes(size: tuple[int, int], longest: int, wanted: tuple[int, int]) -> None:
    assert shrunk_size(size, longest) == wanted
    assert shrunk_size(size, None) == size


def test_image_and_label_shrink_together(streets: Path) -> None:
    data = open_dataset("folder", streets, "train")
    small = Resized(data, WIDTH // 2)
    assert len(small) == len(data)
    image, target = small[1]
    assert image.shape == (HEIGHT // 2, WIDTH // 2, 3) and target.shape == image.shape[:2]
    assert (small.image(1) == image).all() and (small.target(1) == target).all()
    assert set(np.unique(target)) <= set(np.unique(data[1].target))
    means = data[1].image.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean(axis=(1, 3))
    assert np.abs(image - means).mean() < 10


def test_a_recipe_may_resize(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(data__resize=32, schedule__epochs=1)
    assert train(config, tmp_path, run_log=None).val_scores is not None


def test_several_channels_are_refused(tmp_path: Path) -> None:
    nyu.labeled_mat(tmp_path, train=[4, 1], test=[2])
    with pytest.raises(DatasetError, match=r"data\.resize is for RGB images"):
        Resized(open_dataset("nyudv2_rgbd", tmp_path, "test"), 32)
