"""Keeps what each image of an evaluation contributed: how sure are the scores, and which images are
the worst."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.datasets.base import UInt8Array
from training.evaluation.metrics import Confusion

_RESAMPLES = 1000
_CONFIDENCE = 0.95

Counts = npt.NDArray[np.int64]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ImageCounts:
    """Counts one image by class of the first head, int64 [C] each: pixels right, labelled
    and predicted. `seconds`: what the prediction took, without reading the file."""

    index: int
    hits: Counts
    labelled: Counts
    predicted: Counts
    seconds: float

    @property
    def mean_iu(self) -> float:
        """Average the IU over the classes that are in this image's label; NaN if it is void."""
        present = self.labelled > 0
        if not present.any():
            return float("nan")
        union = self.labelled + self.predicted - self.hits
        return float((self.hits[present] / union[present]).mean())


class Audit:
    """Collects the counts of the images that were scored."""

    def __init__(self) -> None:
        self.images: list[ImageCounts] = []

    def add(
        self,
        index: int,
        heads: Mapping[str, int],
        target: UInt8Array,
        prediction: UInt8Array,
        seconds: float,
    ) -> None:
        """Count one image, whose shapes are known to fit."""
        own = Confusion(heads)
        own.add(target, prediction)
        counts = own.of(next(iter(heads))).counts
        self.images.append(
            ImageCounts(index, np.diag(counts), counts.sum(axis=1), counts.sum(axis=0), seconds)
        )

    def worst(self, count: int) -> list[ImageCounts]:
        """List the images of the lowest mean IU, the lowest first."""
        return self._ranked()[:count]

    def median(self, count: int) -> list[ImageCounts]:
        """List those in the middle that are not among as many worst."""
        ranked = self._ranked()
        start = max(count, (len(ranked) - count) // 2)
        return ranked[start : start + count]

    def _ranked(self) -> list[ImageCounts]:
        scored = [image for image in self.images if not np.isnan(image.mean_iu)]
        return sorted(scored, key=lambda image: image.mean_iu)

    def intervals(self, seed: int = 0) -> tuple[dict[str, Interval], list[Interval]]:
        """Compute confidence intervals of the metrics, by their names, and of each class's IU.

        The images are drawn anew with replacement, so many as there are, and scored each time:
        what the scores would be on other images of the same kind. NaN where no draw has the class.
        Source: Efron 1979, the percentile bootstrap.
        """
        draws = np.random.default_rng(seed).multinomial(
            len(self.images), np.full(len(self.images), 1 / len(self.images)), _RESAMPLES
        )
        hits, labelled, predicted = (
            draws @ np.stack([getattr(image, name) for image in self.images])
            for name in ("hits", "labelled", "predicted")
        )
        union, total = labelled + predicted - hits, labelled.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            iu, accuracy = hits / union, hits / labelled
            metrics = {
                "pixel accuracy": hits.sum(axis=1) / total,
                "mean accuracy": _mean(accuracy),
                "mean IU": _mean(iu),
                "frequency weighted IU": np.nansum(labelled * iu, axis=1) / total,
            }
        return {name: _interval(values) for name, values in metrics.items()}, [
            _interval(values) for values in iu.T
        ]


def _mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average each row over its numbers; a row without any gives NaN."""
    known = ~np.isnan(values)
    means: npt.NDArray[np.float64] = np.where(known, values, 0).sum(axis=1) / known.sum(axis=1)
    return means


def _interval(values: Sequence[float] | npt.NDArray[np.float64]) -> Interval:
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return float("nan"), float("nan")
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)
