"""Drawn scenes, and a recipe of a narrow network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.training.recipes import MakeConfig, changed, raw_recipe
from training.config import TrainConfig, parse_config
from training.datasets import drawn

HEIGHT, WIDTH = 40, 56
SIZES = {"train": 6, "val": 2, "test": 3}


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set folder; nobody may change it."""
    root = tmp_path_factory.mktemp("streets")
    for split, count in SIZES.items():
        drawn.write(root, split, count, HEIGHT, WIDTH, seed=0)
    return root


@pytest.fixture
def make_config(streets: Path) -> MakeConfig:
    """The recipe with changes given as `section__field=value`."""

    def make(**changes: Any) -> TrainConfig:
        return parse_config(changed(raw_recipe(streets), changes), "test recipe")

    return make
