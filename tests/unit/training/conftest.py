"""Drawn scenes, recipes on them, and runs that were done once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.export.parity import ParityReport
from tests.unit.training import small_network
from tests.unit.training.evaluation.fake_server import FakeServer
from tests.unit.training.recipes import MakeConfig, Run, changed, raw_recipe
from training import publish
from training.config import TrainConfig, parse_config
from training.datasets import drawn
from training.train import train

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


@pytest.fixture(scope="session")
def finished(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The recipe as it is, to its end."""
    config = parse_config(raw_recipe(streets), "test recipe")
    folder = tmp_path_factory.mktemp("finished") / "streets"
    return Run(config, folder, train(config, folder))


@pytest.fixture(scope="session")
def begun(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, interrupted after the first iteration, and without a log."""
    config = parse_config(raw_recipe(streets), "test recipe")
    folder = tmp_path_factory.mktemp("begun") / "streets"
    return Run(config, folder, train(config, folder, stop_after=1, run_log=None))


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing writes a placeholder: one test of test_publish has the real exporter."""

    def write(
        network: Any, contract: Any, path: Path, *, winograd: Any = ()
    ) -> tuple[Any, ParityReport]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contract.to_json())
        return contract, ParityReport(((1, 32, 32),), 0.0, 1.0, 2)

    monkeypatch.setattr(publish, "export", write)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The file of small_network, to be made smaller; with `images`, what to calibrate it with."""
    return small_network.write(tmp_path / "model.onnx", small_network.network())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return small_network.write_images(tmp_path / "images")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()
