"""The four metrics of the paper (section 5) from one data-set-wide confusion matrix.

The fifth of its tables, SIFT Flow's geometric accuracy, is the pixel accuracy of a matrix of its
own: `Confusion(3)` over the geometric label maps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Absent = Literal["exclude_gt", "nan", "zero"]
"""What a class without a labelled pixel does to the means over classes.

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
        """JSON-ready: NaN (not in the mean) becomes None."""
        result: dict[str, Any] = asdict(self)
        result["class_iu"] = {
            name: None if np.isnan(iu) else float(iu)
            for name, iu in zip(class_names, self.class_iu, strict=True)
        }
        return result


class Confusion:
    """Counts n_ij of pixels of class i predicted as class j; rows are ground truth."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def add(self, target: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8]) -> None:
        """Both uint8, of the same shape. Targets >= num_classes are void and left out.

        Raises: ScoreError if the shapes differ or a prediction at a labelled pixel is no class.
        """
        if target.shape != prediction.shape:
            raise ScoreError(f"target {target.shape} and prediction {prediction.shape} differ")
        valid = target < self.num_classes
        true, predicted = target[valid], prediction[valid]
        if predicted.size and int(predicted.max()) >= self.num_classes:
            raise ScoreError(f"prediction {predicted.max()} is not below {self.num_classes}")
        cells = true.astype(np.int64) * self.num_classes + predicted
        self.counts += np.bincount(cells, minlength=self.num_classes**2).reshape(self.counts.shape)

    def class_shares(self) -> npt.NDArray[np.float64]:
        """float64 [C], each class's share of the labelled pixels (NaN when there are none)."""
        labelled = self.counts.sum(axis=1)
        with np.errstate(invalid="ignore"):
            shares: npt.NDArray[np.float64] = labelled / labelled.sum()
        return shares

    def scores(self, absent: Absent = "nan") -> Scores:
        """`absent`: what becomes of classes without a labelled pixel, see there.

        Raises: ScoreError if nothing was labelled.
        """
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
