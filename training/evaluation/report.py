"""Formats scores for a reader, and for a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training.analysis.masking import Mask, background_class, foreground_mean_iu
from training.datasets import SegmentationDataset
from training.datasets.coverage import few
from training.evaluation.evaluate import Evaluation
from training.evaluation.metrics import Absent, Confusion, ScoreError
from training.evaluation.scales import ScaleScore, known_range, table

_SHOWN_FAILURES = 20


def class_table(scores: Mapping[str, Any]) -> str:
    """Format the IU per class, in percent, and the mean, of scores as `Confusion.to_dict` has
    them."""
    rows = {**scores["class_iu"], "mean IU": scores["mean_iu"]}
    width = max(map(len, rows))
    return "\n".join(
        f"{name:<{width}}  {'-' if iu is None else f'{100 * iu:.2f}':>6}"
        for name, iu in rows.items()
    )


@dataclass(frozen=True, slots=True)
class Report:
    """Says what was scored, and how it did. `source_kind` as in `targets`."""

    source: str
    source_kind: str
    data: SegmentationDataset
    evaluation: Evaluation
    seconds: float
    absent: Absent = "nan"
    """Says what classes without a labelled pixel do to the means."""
    mask: Mask = "all"
    """The pixels of the images that were kept."""
    flip: bool = False
    """Each image was predicted mirrored, too."""
    scales: tuple[ScaleScore, ...] = ()
    """Says how well other sizes of the images do, if that was measured."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values. Scores are shares in 0..1; None for a class that left the
        mean."""
        return {
            "source": self.source,
            "source_kind": self.source_kind,
            "dataset": self.data.info.data.name,
            "split": self.data.split,
            "images": self.evaluation.images,
            "failed": [
                {"image": str(failure.image), "error": failure.error}
                for failure in self.evaluation.failures
            ],
            "not_asked": self.evaluation.not_asked,
            "seconds": round(self.seconds, 3),
            "absent": self.absent,
            "mask": self.mask,
            "flip": self.flip,
            "unlabelled_classes": self.unlabelled,
            **self.confusion.to_dict(self.data.info.class_names, self.absent),
            **self._scales,
            **({} if self._objects is None else {"mean_iu_without_background": self._objects}),
        }

    @property
    def _scales(self) -> dict[str, Any]:
        if not self.scales:
            return {}
        return {
            "scales": [asdict(score) for score in self.scales],
            "input_range": known_range(self.scales),
        }

    @property
    def confusion(self) -> Confusion:
        return self.evaluation.confusion

    @property
    def unlabelled(self) -> list[str]:
        """List the classes without a labelled pixel, whose scores say nothing; of several heads
        `head/name`."""
        names = [
            f"{head}/{name}" if len(self.data.info.heads) > 1 else name
            for head, listed in self.data.info.class_names.items()
            for name in listed
        ]
        labelled = self.confusion.counts.sum(axis=1)
        return [name for name, pixels in zip(names, labelled, strict=True) if not pixels]

    @property
    def warning(self) -> str:
        """Says which classes were not tested; empty if all were."""
        names = self.unlabelled
        if not names:
            return ""
        total = sum(self.data.info.head_sizes.values())
        return (
            f"no pixel of split {self.data.split!r} is labelled {few(names)} ({len(names)} of "
            f"{total} classes): the scores say nothing of them, and the means count them as "
            f"--absent {self.absent} says"
        )

    @property
    def _objects(self) -> float | None:
        """Compute the mean IU without the background, if there is such a class and another one was
        scored."""
        background = background_class(self.data)
        if background is None:
            return None
        try:
            return foreground_mean_iu(self.confusion.scores(self.absent), background)
        except ScoreError:
            return None

    @property
    def metrics(self) -> dict[str, float]:
        """Compute the metrics by their names, shares of 1."""
        scores = self.confusion.scores(self.absent)
        metrics = {
            "pixel accuracy": scores.pixel_accuracy,
            "mean accuracy": scores.mean_accuracy,
            "mean IU": scores.mean_iu,
            "frequency weighted IU": scores.frequency_weighted_iu,
        }
        for head in list(self.data.info.heads)[1:]:
            other = self.confusion.of(head).scores(self.absent)
            metrics[f"pixel accuracy of {head}"] = other.pixel_accuracy
        if self._objects is not None:
            metrics["mean IU without background"] = self._objects
        return metrics

    def table(self) -> str:
        """Format the IU and the share of the labelled pixels per class, then the metrics; in
        percent."""
        heads = self.data.info.heads
        names = [info.name for classes in heads.values() for info in classes]
        metrics = self.metrics
        width = max(map(len, ["class", *names, *metrics]))
        masked = "" if self.mask == "all" else f", {self.mask} alone"
        masked += ", mirrored too" if self.flip else ""
        lines = [
            f"{self.source} on {self.data.info.data.name}, {self.data.split}{masked}: "
            f"{self.evaluation.images} images, "
            f"{self.evaluation.images / max(self.seconds, 1e-9):.1f} a second"
        ]
        for head, classes in heads.items():
            part = self.confusion.of(head)
            lines += ["", f"{'class':<{width}}  IU [%]  pixels [%]"]
            ious, shares = part.scores(self.absent).class_iu, part.class_shares()
            for info, iu, share in zip(classes, ious, shares, strict=True):
                shown = "-" if np.isnan(iu) else f"{100 * iu:.2f}"
                lines.append(f"{info.name:<{width}}  {shown:>6}  {100 * share:>10.2f}")
        lines.append("")
        lines += [f"{name:<{width}}  {100 * value:>6.2f}" for name, value in metrics.items()]
        lines += ["", table(self.scales)] if self.scales else []
        lines += self._failed()
        return "\n".join(lines)

    def _failed(self) -> list[str]:
        """Format what was not scored."""
        if self.evaluation.complete:
            return []
        failures = self.evaluation.failures
        lines = ["", f"not scored: {len(failures)} failed, {self.evaluation.not_asked} not asked"]
        lines += [f"{failure.image}: {failure.error}" for failure in failures[:_SHOWN_FAILURES]]
        return lines
