"""Our four metrics against torchmetrics, over random confusions, void pixels and absent classes.

Torchmetrics' means over classes leave out a class that is neither labelled nor predicted, and count
one that is only predicted as 0, in the mean accuracy as in the mean IU. Ours do the same for the
IU under `nan`; the accuracy of an unlabelled class has no meaning, and score.py of the FCN authors
leaves it out, as we do. Both means of the other treatments follow from torchmetrics' scores class
by class, where an absent class has 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

from training.evaluation.metrics import Absent, Confusion

VOID = 255
CLASSES = 5


class Case(NamedTuple):
    """uint8 labels and predictions of the same pixels."""

    target: np.ndarray
    prediction: np.ndarray

    @property
    def confusion(self) -> Confusion:
        matrix = Confusion(CLASSES)
        matrix.add(self.target, self.prediction)
        return matrix

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Prediction and target, as torchmetrics takes them."""
        return torch.from_numpy(self.prediction).long(), torch.from_numpy(self.target).long()


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Some classes are never labelled, some never predicted; at least one pixel is labelled."""
    labelled = draw(st.sets(st.integers(0, CLASSES - 1), min_size=1))
    predicted = draw(st.sets(st.integers(0, CLASSES - 1), min_size=1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.integers(1, 300))
    target = rng.choice(sorted(labelled), size)
    prediction = rng.choice(sorted(predicted), size)
    # A network that is right more often than by chance.
    right = rng.random(size) < draw(st.floats(0, 1))
    prediction = np.where(right & np.isin(target, sorted(predicted)), target, prediction)
    target[1:][rng.random(size - 1) < draw(st.floats(0, 0.9))] = VOID
    return Case(target.astype(np.uint8), prediction.astype(np.uint8))


many = settings(max_examples=60, deadline=None)


@given(cases())
@many
def test_the_matrix_and_what_does_not_depend_on_absent_classes(case: Case) -> None:
    counts = multiclass_confusion_matrix(*case.tensors, CLASSES, ignore_index=VOID)
    twice = case.confusion
    twice.add(case.target, np.where(case.target == VOID, VOID, case.prediction))
    assert np.array_equal(case.confusion.counts, counts.numpy())
    assert np.array_equal(twice.counts, 2 * counts.numpy())
    assert twice.class_shares().sum() == pytest.approx(1)
    scores = case.confusion.scores()
    pixel = multiclass_accuracy(*case.tensors, CLASSES, average="micro", ignore_index=VOID)
    weighted = multiclass_jaccard_index(
        *case.tensors, CLASSES, average="weighted", ignore_index=VOID
    )
    assert scores.pixel_accuracy == pytest.approx(float(pixel), abs=1e-6)
    assert scores.frequency_weighted_iu == pytest.approx(float(weighted), abs=1e-6)


@given(cases())
@many
def test_mean_iu_of_nan_is_the_macro_average(case: Case) -> None:
    macro = multiclass_jaccard_index(*case.tensors, CLASSES, average="macro", ignore_index=VOID)
    assert case.confusion.scores("nan").mean_iu == pytest.approx(float(macro), abs=1e-6)


@given(cases(), st.sampled_from(["exclude_gt", "nan", "zero"]))
@many
def test_means_over_the_classes_that_a_treatment_keeps(case: Case, absent: Absent) -> None:
    each = {"average": "none", "ignore_index": VOID}
    iu = multiclass_jaccard_index(*case.tensors, CLASSES, **each).numpy()  # type: ignore[arg-type]
    accuracy = multiclass_accuracy(*case.tensors, CLASSES, **each).numpy()  # type: ignore[arg-type]
    scored = case.target != VOID
    labelled = np.isin(np.arange(CLASSES), case.target[scored])
    seen = labelled | np.isin(np.arange(CLASSES), case.prediction[scored])
    everything = np.ones(CLASSES, bool)
    kept_iu = {"exclude_gt": labelled, "nan": seen, "zero": everything}[absent]
    kept_accuracy = {"exclude_gt": labelled, "nan": labelled, "zero": everything}[absent]
    scores = case.confusion.scores(absent)
    assert scores.mean_iu == pytest.approx(float(iu[kept_iu].mean()), abs=1e-6)
    assert scores.mean_accuracy == pytest.approx(float(accuracy[kept_accuracy].mean()), abs=1e-6)
    assert np.array_equal(~np.isnan(scores.class_iu), kept_iu)


def test_where_the_mean_accuracies_differ() -> None:
    """Class 1 is only predicted: torchmetrics averages 3/4 and 0, we take 3/4."""
    case = Case(np.array([0, 0, 0, 0], np.uint8), np.array([0, 0, 0, 1], np.uint8))
    theirs = multiclass_accuracy(*case.tensors, CLASSES, average="macro", ignore_index=VOID)
    assert float(theirs) == pytest.approx(3 / 8)
    assert case.confusion.scores("nan").mean_accuracy == pytest.approx(3 / 4)
