"""The recipes for a GPU, in their own words but for where the data lie, readers and widths: loaded,
built, trained two steps on a miniature of CamVid, with their teacher."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.network import SegmentationNetwork
from tests.drawing import street
from training import train as train_module
from training.config import TrainConfig, load_config
from training.datasets import DatasetInfo
from training.teacher import load_teacher
from training.train import Trainer

ROOT = Path(__file__).resolve().parents[3]
GPU = ROOT / "training" / "configs" / "gpu"
NAMES = sorted(path.stem for path in GPU.glob("*.yaml"))
PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("camvid")
    rng = np.random.default_rng(0)
    for split, count in (("train", 17), ("val", 1)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(street(32, 48, seed=index)).save(
                root / split / "images" / f"{index}.png"
            )
            labels = rng.integers(0, 11, (32, 48), np.uint8)
            Image.fromarray(labels).save(root / split / "labels" / f"{index}.png")
    return root


def narrow_config(name: str, root: Path) -> TrainConfig:
    changes = [f"data.root={root}", "data.workers=0", "threads=1", "precision=fp32"]
    changes += ["augment.crop_height=32", "augment.crop_width=48", "network.fc6_channels=8"]
    own = load_config(GPU / f"{name}.yaml").network
    changes.append(f"network.width={own.width / (32 if own.backbone == 'vgg16' else 8)}")
    return load_config(GPU / f"{name}.yaml", changes)


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(
    name: str, camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(ROOT)  # the teacher is named from there
    # Traced, but not made into machine code.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = narrow_config(name, camvid)
    taught: list[SegmentationNetwork] = []

    def teacher(path: Path, info: DatasetInfo) -> SegmentationNetwork:
        taught.append(load_teacher(path, info))
        return taught[0]

    monkeypatch.setattr(train_module, "load_teacher", teacher)
    trainer = Trainer(config, tmp_path / name, resume=False, run_log=None)
    begun = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    done = trainer.run(stop_after=2)
    assert done.iteration == 2
    assert len(taught) == (config.distill.teacher is not None)
    assert all(value.isfinite().all() for value in done.weights.values())
    moved = {key for key, value in done.weights.items() if not torch.equal(value, begun[key])}
    learned = {key for key, _ in trainer.network.named_parameters()}
    assert len(moved & learned) > 0.9 * len(learned)
    assert {key for key in moved if "running_mean" in key}


@pytest.mark.parametrize("name", NAMES)
def test_of_every_recipe(name: str) -> None:
    """bf16 and compiled, as a GPU is used best; the name is the file's."""
    config = load_config(GPU / f"{name}.yaml")
    assert config.name == name
    assert (config.precision, config.compile) == ("bf16", True)
    assert config.data.dataset == "camvid"
    teacher = config.distill.teacher
    assert teacher is None or (ROOT / teacher).is_file()
    # Cells of the coarsest map: batch norm wants more than one of each channel.
    height, width = config.augment.crop_height, config.augment.crop_width
    assert height and width and (height // 32) * (width // 32) > 1


def test_the_page_names_every_recipe() -> None:
    assert set(re.findall(r"configs/gpu/([\w.-]+)\.yaml", PAGE)) == set(NAMES)
