"""Scores for a reader, and for a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from training.analysis.masking import Shown, background_class, foreground_mean_iu
from training.datasets import SegmentationDataset
from training.metrics import Absent, Confusion, ScoreError


@dataclass(frozen=True, slots=True)
class Report:
    """What was scored, and how it did. `source_kind` as in `sources.Source.kind`."""

    source: str
    source_kind: str
    data: SegmentationDataset
    confusion: Confusion
    seconds: float
    absent: Absent = "nan"
    """What classes without a labelled pixel do to the means."""
    shown: Shown = "all"
    """What of the pictures was shown."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. Scores are shares in 0..1; None for a class that left the mean."""
        names = tuple(info.name for info in self.data.info.classes)
        return {
            "source": self.source,
            "source_kind": self.source_kind,
            "dataset": self.data.info.data.name,
            "split": self.data.split,
            "images": len(self.data),
            "seconds": round(self.seconds, 3),
            "absent": self.absent,
            "shown": self.shown,
            **self.confusion.scores(self.absent).to_dict(names),
            **self._without_background(),
        }

    def _without_background(self) -> dict[str, float]:
        """Its mean IU, where there is such a class and another one was scored."""
        background = background_class(self.data)
        if background is None:
            return {}
        try:
            mean_iu = foreground_mean_iu(self.confusion.scores(self.absent), background)
        except ScoreError:
            return {}
        return {"mean_iu_without_background": mean_iu}

    def table(self) -> str:
        """Per class its IU and share of the labelled pixels, then the four metrics; in percent."""
        names = [info.name for info in self.data.info.classes]
        scores, shares = self.confusion.scores(self.absent), self.confusion.class_shares()
        metrics = {
            "pixel accuracy": scores.pixel_accuracy,
            "mean accuracy": scores.mean_accuracy,
            "mean IU": scores.mean_iu,
            "frequency weighted IU": scores.frequency_weighted_iu,
        }
        metrics |= {
            "mean IU without background": value for value in self._without_background().values()
        }
        width = max(map(len, ["class", *names, *metrics]))
        shown = "" if self.shown == "all" else f", {self.shown} alone"
        lines = [
            f"{self.source} on {self.data.info.data.name}, {self.data.split}{shown}: "
            f"{len(self.data)} images, {len(self.data) / max(self.seconds, 1e-9):.1f} a second",
            "",
            f"{'class':<{width}}  IU [%]  pixels [%]",
        ]
        for name, iu, share in zip(names, scores.class_iu, shares, strict=True):
            shown = "-" if np.isnan(iu) else f"{100 * iu:.2f}"
            lines.append(f"{name:<{width}}  {shown:>6}  {100 * share:>10.2f}")
        lines.append("")
        lines += [f"{name:<{width}}  {100 * value:>6.2f}" for name, value in metrics.items()]
        return "\n".join(lines)
