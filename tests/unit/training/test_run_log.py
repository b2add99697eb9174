"""A run's log is read back with TensorBoard's own reader."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.contract import ClassInfo
from tests.waiting import until
from training.datasets.base import VOID, Sample
from training.evaluation.metrics import Scores
from training.run_log import RunLog

CLASSES = (ClassInfo(0, "sky", (10, 20, 30)), ClassInfo(1, "road", (40, 50, 60)))
SCORES = Scores(0.9, 0.8, 0.7, 0.6, np.array([0.75, np.nan]))
RATES = {"backbone_lr": 1e-4, "head_lr": 1e-3}


def write(record: RunLog, iteration: int, scores: Scores | None = None, loss: float = 0.5) -> None:
    record.epoch(
        iteration=iteration,
        epoch=iteration // 10,
        loss=loss,
        learning_rates=RATES,
        images_per_s=12.345,
        scores=scores,
    )


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def board(run_dir: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return events


def test_csv_and_scalars(tmp_path: Path) -> None:
    record = RunLog(tmp_path, CLASSES)
    write(record, 10)
    write(record, 20, SCORES, loss=0.25)
    record.close()
    first, second = rows(tmp_path)
    assert first["val_mean_iu"] == ""
    assert second == {
        "iteration": "20",
        "epoch": "2",
        "loss": "0.25",
        "backbone_lr": "0.0001",
        "head_lr": "0.001",
        "images_per_s": "12.35",
        "val_pixel_accuracy": "0.9",
        "val_mean_accuracy": "0.8",
        "val_mean_iu": "0.7",
        "val_frequency_weighted_iu": "0.6",
        "val_iu/sky": "0.75",
        "val_iu/road": "",  # occurs nowhere
    }
    events = board(tmp_path)
    assert set(events.Tags()["scalars"]) == {
        "loss",
        "backbone_lr",
        "head_lr",
        "images_per_s",
        "val/pixel_accuracy",
        "val/mean_accuracy",
        "val/mean_iu",
        "val/frequency_weighted_iu",
        "val_iu/sky",
    }
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 0.5), (20, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("val/mean_iu")] == [(20, pytest.approx(0.7))]


def test_image_is_image_truth_and_prediction(tmp_path: Path) -> None:
    record = RunLog(tmp_path, CLASSES)
    target = np.array([[0, 1], [VOID, 1]], np.uint8)
    prediction = np.array([[1, 1], [0, 0]], np.uint8)
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    record.image("val/0", 10, Sample(image, target), prediction)
    record.close()
    (event,) = board(tmp_path).Images("val/0")
    shown = np.array(Image.open(io.BytesIO(event.encoded_image_string)))
    sky, road, black = (10, 20, 30), (40, 50, 60), (0, 0, 0)
    truth = [[sky, road], [black, road]]
    guess = [[road, road], [black, sky]]  # black where the truth is void
    assert (shown == np.concatenate([image, truth, guess], axis=1)).all()
    assert prediction.tolist() == [[1, 1], [0, 0]]  # the caller's array is untouched


def test_a_resumed_run_drops_what_it_will_do_again(tmp_path: Path) -> None:
    record = RunLog(tmp_path, CLASSES)
    for iteration in (10, 20, 30):
        write(record, iteration, loss=1.0)
    record.close()
    written = int(time.time())
    until(lambda: int(time.time()) > written)  # the files are read in the order of their seconds
    record = RunLog(tmp_path, CLASSES, iteration=20)
    write(record, 30, loss=2.0)
    record.close()
    assert [(row["iteration"], row["loss"]) for row in rows(tmp_path)] == [
        ("10", "1.0"),
        ("20", "1.0"),
        ("30", "2.0"),
    ]
    scalars = [(e.step, e.value) for e in board(tmp_path).Scalars("loss")]
    assert scalars == [(10, 1.0), (20, 1.0), (30, 2.0)]


def test_a_log_with_other_columns_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("iteration,epoch,loss,lr_factor\n10,1,0.5,0.9\n")
    record = RunLog(tmp_path, CLASSES, iteration=10)
    write(record, 20)
    record.close()
    assert [(row["iteration"], row["loss"]) for row in rows(tmp_path)] == [
        ("10", "0.5"),
        ("20", "0.5"),
    ]


def test_a_new_run_starts_a_new_log(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("of another run\n")
    RunLog(tmp_path, CLASSES).close()
    assert rows(tmp_path) == []
