"""Computes the four metrics of the paper (section 5) from one data-set-wide confusion matrix.

SIFT Flow's geometric accuracy is the pixel accuracy of its second head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from model.heads import Classes, head_sizes

Absent = Literal["exclude_gt", "nan", "zero"]
"""Says what a class without a labelled pixel does to the means over classes.

`exclude_gt`: it leaves both means, even if it was predicted; those pixels still count against the
classes they belong to. So the paper's footnote 10 on SIFT Flow: 33 classes are predicted, those
present in the test set are averaged.
`nan`: predicted somewhere, its IU is 0; predicted nowhere, it leaves the mean IU. It always leaves
the mean accuracy. So `score.py` of shelhamer/fcn.berkeleyvision.org@1305c73, which divides 0 by 0
and takes `nanmean`, and whose authors call their SIFT Flow scores off for it.
`zero`: it counts as 0 in both means, which are over the whole class list.

Where every class is labelled, the three agree; pixel accuracy and frequency weighted IU never
depend on the choice.
"""


class ScoreError(ValueError):
    """Target and prediction cannot be compared, or there is nothing to score."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Shares in 0..1. `class_iu` float64 [C], NaN for a class that left the mean IU."""

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float
    class_iu: npt.NDArray[np.float64]

    def to_dict(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Convert to JSON values: NaN (not in the mean) becomes None."""
        result: dict[str, Any] = asdict(self)
        result["class_iu"] = {
            name: None if np.isnan(iu) else float(iu)
            for name, iu in zip(class_names, self.class_iu, strict=True)
        }
        return result


class Confusion:
    """Counts n_ij of pixels of class i predicted as class j; rows are ground truth.

    `classes`: how many; or how many by head, and then the classes of all heads follow one another,
    and no pixel of one is ever counted for another.
    """

    def __init__(self, classes: Classes) -> None:
        self.heads = head_sizes(classes)
        self.num_classes = sum(self.heads.values())
        self.counts = np.zeros((self.num_classes, self.num_classes), np.int64)

    def add(self, target: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8]) -> None:
        """Count one label map, uint8 like its target and of the same shape; with K > 1 heads the
        last side is K. Targets that are no class are void and left out.

        Raises: ScoreError if the shapes differ or a prediction at a labelled pixel is no class.
        """
        if target.shape != prediction.shape:
            raise ScoreError(f"target {target.shape} and prediction {prediction.shape} differ")
        if len(self.heads) == 1:
            self.counts += _counts(target, prediction, self.num_classes)
            return
        if target.shape[-1] != len(self.heads):
            raise ScoreError(f"labels {target.shape}: want {len(self.heads)} in the last side")
        for index, head in enumerate(self.heads):
            place, size = self._block(head)
            self.counts[place] += _counts(target[..., index], prediction[..., index], size)

    def to_dict(
        self, class_names: Mapping[str, tuple[str, ...]], absent: Absent = "nan"
    ) -> dict[str, Any]:
        """Convert the first head's scores to JSON values; with several heads, `heads` has the
        scores of each by name. `class_names`: by head. Raises: ScoreError."""
        by_head = {
            head: self.of(head).scores(absent).to_dict(names) for head, names in class_names.items()
        }
        first = next(iter(by_head.values()))
        return first if len(by_head) == 1 else {**first, "heads": by_head}

    def of(self, head: str) -> Confusion:
        """Copy one head's part."""
        place, size = self._block(head)
        part = Confusion(size)
        part.counts = self.counts[place].copy()
        return part

    def _block(self, head: str) -> tuple[tuple[slice, slice], int]:
        """Locate a head's counts, and tell how many classes it has."""
        names = list(self.heads)
        start = sum(self.heads[name] for name in names[: names.index(head)])
        side = slice(start, start + self.heads[head])
        return (side, side), self.heads[head]

    def class_shares(self) -> npt.NDArray[np.float64]:
        """Compute float64 [C], the share that each class of the first head has of the labelled
        pixels (NaN when there are none)."""
        labelled = self.counts.sum(axis=1)[: next(iter(self.heads.values()))]
        with np.errstate(invalid="ignore"):
            shares: npt.NDArray[np.float64] = labelled / labelled.sum()
        return shares

    def scores(self, absent: Absent = "nan") -> Scores:
        """Score the first or only head; `absent`: what classes without a labelled pixel do.

        Raises: ScoreError if nothing was labelled.
        """
        if len(self.heads) > 1:
            return self.of(next(iter(self.heads))).scores(absent)
        labelled = self.counts.sum(axis=1)
        total = int(labelled.sum())
        if not total:
            raise ScoreError("no labelled pixel: there is nothing to score")
        hits = np.diag(self.counts)
        union = labelled + self.counts.sum(axis=0) - hits
        present = labelled > 0
        scored = {"exclude_gt": present, "nan": union > 0, "zero": union > 0}[absent]
        missing = 0.0 if absent == "zero" else np.nan
        iu = np.divide(hits, union, out=np.full(self.num_classes, missing), where=scored)
        accuracy = np.divide(hits, labelled, out=np.full(self.num_classes, missing), where=present)
        return Scores(
            pixel_accuracy=float(hits.sum() / total),
            mean_accuracy=float(np.nanmean(accuracy)),
            mean_iu=float(np.nanmean(iu)),
            frequency_weighted_iu=float((labelled[present] * iu[present]).sum() / total),
            class_iu=iu,
        )


def _counts(
    target: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8], classes: int
) -> npt.NDArray[np.int64]:
    """Count pairs, int64 [C,C]. Raises: ScoreError if a prediction at a labelled pixel is no
    class."""
    valid = target < classes
    true, predicted = target[valid], prediction[valid]
    if predicted.size and int(predicted.max()) >= classes:
        raise ScoreError(f"prediction {predicted.max()} is not below {classes}")
    cells = true.astype(np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)
