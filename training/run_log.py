"""Writes the log of a run: log.csv, TensorBoard scalars and images of predictions."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from model.contract import ClassInfo, palette_of
from training.curves import draw_curves
from training.datasets.base import VOID, Sample, UInt8Array
from training.evaluation.metrics import Scores

_METRICS = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")


class RunLog:
    """Appends to `run_dir/log.csv` and `run_dir/tensorboard`, in which a resumed run goes on, and
    draws `run_dir/curves.png`."""

    def __init__(self, run_dir: Path, classes: tuple[ClassInfo, ...], iteration: int = 0) -> None:
        """Open the log; `iteration` is where the run (re)starts: log lines from beyond it are
        dropped, since an interrupted run may have logged more than it had saved."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / "log.csv"
        self.names = tuple(info.name for info in classes)
        self.columns = (
            "iteration",
            "epoch",
            "loss",
            "backbone_lr",
            "head_lr",
            "images_per_s",
            *(f"val_{name}" for name in _METRICS),
            *(f"val_iu/{name}" for name in self.names),
        )
        kept = self._rows_until(iteration) if iteration else []
        with self.path.open("w", newline="", encoding="utf-8") as file:
            # A log of an earlier version may have had other columns.
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)
        # What was logged at `iteration` itself stays.
        purge_step = iteration + 1 if iteration else None
        self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)
        self.palette = palette_of(classes)

    def _rows_until(self, iteration: int) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if int(row["iteration"]) <= iteration]

    def epoch(
        self,
        *,
        iteration: int,
        epoch: int,
        loss: float,
        learning_rates: Mapping[str, float],
        images_per_s: float,
        scores: Scores | None,
    ) -> None:
        """Write a line of the CSV, and the same as scalars. `learning_rates` by column."""
        row: dict[str, Any] = {
            "iteration": iteration,
            "epoch": epoch,
            "loss": round(loss, 6),
            **{name: float(f"{rate:.6g}") for name, rate in learning_rates.items()},
            "images_per_s": round(images_per_s, 2),
        }
        if scores is not None:
            row |= {f"val_{name}": round(getattr(scores, name), 6) for name in _METRICS}
            row |= {
                f"val_iu/{name}": round(float(iu), 6)
                for name, iu in zip(self.names, scores.class_iu, strict=True)
                if not np.isnan(iu)
            }
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        draw_curves(self._rows_until(iteration), self.path.with_name("curves.png"))
        for key, value in row.items():
            if key not in ("iteration", "epoch"):
                tag = key if key.startswith("val_iu/") else key.replace("val_", "val/")
                self.board.add_scalar(tag, value, iteration)
        self.board.flush()

    def image(self, tag: str, iteration: int, sample: Sample, prediction: UInt8Array) -> None:
        """Show an image, its ground truth and a prediction side by side, void pixels black in both:
        the first three channels and the first head."""
        target, shown = sample.target, prediction.copy()
        if target.ndim == 3:
            target, shown = target[..., 0], shown[..., 0]
        shown[target == VOID] = VOID
        row = np.concatenate(
            [sample.image[..., :3].astype(np.uint8), self.palette[target], self.palette[shown]],
            axis=1,
        )
        self.board.add_image(tag, row, iteration, dataformats="HWC")

    def close(self) -> None:
        self.board.close()
