"""Images held out by their names, the end of a run that gets no better, and its curves."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import training.train as train_module
from tests.unit.training.recipes import MakeConfig
from training.checkpoint import Checkpoint
from training.curves import draw_curves
from training.datasets import DatasetError, SegmentationDataset, open_dataset
from training.evaluation.metrics import Confusion
from training.train import Trainer, train


def stems(data: SegmentationDataset) -> list[str]:
    return [image.stem for image, _label in data.pairs]


@pytest.fixture
def films(streets: Path, tmp_path: Path) -> Path:
    """The drawn scenes, four of train as film a and two as film b."""
    root = tmp_path / "films"
    shutil.copytree(streets, root)
    for kind in ("images", "labels"):
        for number, path in enumerate(sorted((root / "train" / kind).iterdir())):
            path.rename(path.with_name(f"{'a' if number < 4 else 'b'}_{number}{path.suffix}"))
    return root


def test_a_film_is_held_out(films: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(data__root=str(films), data__hold_out="b_*")
    trainer = Trainer(config, tmp_path / "run", resume=False, run_log=None)
    assert stems(trainer.train_data) == ["a_0", "a_1", "a_2", "a_3"]
    assert stems(trainer.val_data) == ["b_4", "b_5"]
    whole = open_dataset("folder", films, "train")
    for index in (0, 1):
        own, wanted = trainer.val_data[index], whole[4 + index]
        assert (own.image == wanted.image).all() and (own.target == wanted.target).all()
        assert (trainer.val_data.target(index) == wanted.target).all()
        assert (trainer.val_data.image(index) == wanted.image).all()


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("c_*", r"'c_\*' matches no image of split 'train': .*begin with a \(4\), b \(2\); give"),
        ("*", r"'\*' matches every image of split 'train'"),
    ],
)
def test_a_pattern_of_none_or_all(
    films: Path, tmp_path: Path, make_config: MakeConfig, pattern: str, complaint: str
) -> None:
    config = make_config(data__root=str(films), data__hold_out=pattern)
    with pytest.raises(DatasetError, match=complaint):
        Trainer(config, tmp_path / "run", resume=False, run_log=None)


def test_names_that_tell_no_sequences_apart(tmp_path: Path, make_config: MakeConfig) -> None:
    with pytest.raises(DatasetError, match="do not tell sequences apart .* give a pattern"):
        Trainer(make_config(data__hold_out="x*"), tmp_path / "run", resume=False, run_log=None)


def falling(monkeypatch: pytest.MonkeyPatch, shares: list[float]) -> None:
    """Make the validations give these pixel accuracies, one after the other."""
    left = iter(shares)

    def validate(*_: object) -> Confusion:
        share = next(left)
        confusion = Confusion(4)
        confusion.counts[0, 0], confusion.counts[0, 1] = (
            round(100 * share),
            round(100 - 100 * share),
        )
        return confusion

    monkeypatch.setattr(train_module, "validate", validate)


def test_a_run_that_gets_no_better_ends(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs of three iterations each: the second validation was the best, two more came."""
    falling(monkeypatch, [0.5, 0.7, 0.6, 0.7])
    config = make_config(schedule__epochs=9, schedule__patience=2)
    done = train(config, tmp_path, run_log=None)
    assert done.iteration == 12
    # Resumed it does not go on, unless told to have more patience.
    assert train(config, tmp_path, resume=True, run_log=None).iteration == 12
    falling(monkeypatch, [0.6, 0.6])
    more = make_config(schedule__epochs=9, schedule__patience=4)
    resumed: Checkpoint = train(more, tmp_path, resume=True, run_log=None)
    assert resumed.iteration == 18


def test_curves_are_drawn(tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    rows = [{"iteration": "10", "loss": "0.5", "val_mean_iu": ""}]
    draw_curves(rows, path)
    first = np.array(Image.open(path))
    draw_curves([*rows, {"iteration": "20", "loss": "0.25", "val_mean_iu": "0.7"}], path)
    second = np.array(Image.open(path))
    assert first.shape == second.shape == (300, 960, 3)
    blue = (first == (30, 90, 180)).all(axis=2), (second == (30, 90, 180)).all(axis=2)
    assert not blue[0][:, 480:].any() and blue[1][:, 480:].any()
    assert blue[1][:, :480].sum() > blue[0][:, :480].sum() > 0
