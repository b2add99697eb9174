"""What a run leaves behind: log.csv, TensorBoard scalars and prediction pictures."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from model.contract import ClassInfo
from training.datasets.base import VOID, Pixels, Sample
from training.metrics import Scores

_COLUMNS = (
    "iteration",
    "epoch",
    "loss",
    "lr_factor",
    "images_per_s",
    "val_pixel_accuracy",
    "val_mean_accuracy",
    "val_mean_iu",
    "val_frequency_weighted_iu",
)


class Record:
    """Appends to `run_dir/log.csv` and `run_dir/tensorboard`; a resumed run goes on in both."""

    def __init__(self, run_dir: Path, classes: tuple[ClassInfo, ...], iteration: int = 0) -> None:
        """`iteration`: where the run (re)starts; log lines from beyond it are dropped, since an
        interrupted run may have logged more than it had saved."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / "log.csv"
        kept = self._rows_until(iteration) if iteration else []
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=iteration or None)
        self.names = tuple(info.name for info in classes)
        self.palette = np.zeros((256, 3), np.uint8)
        for info in classes:
            self.palette[info.id] = info.color

    def _rows_until(self, iteration: int) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return [row for row in csv.DictReader(file) if int(row["iteration"]) <= iteration]

    def epoch(
        self,
        *,
        iteration: int,
        epoch: int,
        loss: float,
        lr_factor: float,
        images_per_s: float,
        scores: Scores | None,
    ) -> None:
        """One line of the CSV, and the same as scalars."""
        row: dict[str, Any] = {
            "iteration": iteration,
            "epoch": epoch,
            "loss": round(loss, 6),
            "lr_factor": round(lr_factor, 6),
            "images_per_s": round(images_per_s, 2),
        }
        if scores is not None:
            for name in (
                "pixel_accuracy",
                "mean_accuracy",
                "mean_iu",
                "frequency_weighted_iu",
            ):
                row[f"val_{name}"] = round(getattr(scores, name), 6)
            for name, iu in zip(self.names, scores.class_iu, strict=True):
                self.board.add_scalar(f"val_iu/{name}", iu, iteration)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, _COLUMNS).writerow(row)
        for key, value in row.items():
            if key not in ("iteration", "epoch"):
                self.board.add_scalar(key.replace("val_", "val/"), value, iteration)

    def picture(self, tag: str, iteration: int, sample: Sample, prediction: Pixels) -> None:
        """Image, ground truth and prediction side by side; void pixels black in both maps."""
        shown = prediction.copy()
        shown[sample.target == VOID] = VOID
        row = np.concatenate(
            [sample.image, self.palette[sample.target], self.palette[shown]], axis=1
        )
        self.board.add_image(tag, row, iteration, dataformats="HWC")

    def close(self) -> None:
        self.board.close()
