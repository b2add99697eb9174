"""The recipes of this project's own models: two steps of each, narrow, on drawn scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.drawing import street
from tests.unit.training import miniatures
from training.config import load_config
from training.datasets import DATASETS, class_info
from training.train import Trainer

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "training" / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("folder"))


def draw(root: Path, dataset: str) -> None:
    """Write nine images of each split, with labels of all classes."""
    if dataset == "voc_animals":
        names: dict[str, Sequence[str]] = {
            split: [f"{split}{n}" for n in range(9)] for split in ("train", "val")
        }
        miniatures.voc(root, 2012, names)
        return
    classes = len(class_info(DATASETS[dataset], root).classes)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index in range(9):
            name = f"{split}{index}.png"
            Image.fromarray(street(32, 48, seed=index)).save(root / split / "images" / name)
            labels = rng.integers(0, classes, (32, 48), np.uint8)
            Image.fromarray(labels).save(root / split / "labels" / name)


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # a start is named from there
    path = CONFIGS / f"{name}.yaml"
    written = load_config(path)
    assert written.name == name
    before = written.init.checkpoint
    is_stage = before is not None and before.parts[0] == "runs"
    assert before is None or before.is_file() or before.parent.name in NAMES
    draw(tmp_path / "data", written.data.dataset)
    changes = [f"data.root={tmp_path / 'data'}", "data.workers=0", "threads=1", "precision=fp32"]
    changes += ["augment.crop_height=32", "augment.crop_width=48"]
    if before is None or is_stage:
        changes += ["init.checkpoint=null", "network.width=0.125", "network.fc6_channels=8"]
        changes += [f"network.skip_channels={min(4, written.network.skip_channels)}"]
    trainer = Trainer(load_config(path, changes), tmp_path / "run", resume=False, run_log=None)
    done = trainer.run(stop_after=2)
    assert done.iteration == 2
    assert all(value.isfinite().all() for value in done.weights.values())
    assert torch.any(done.weights["score_fr.weight"] != 0)
