"""The paper's four metrics on matrices worked by hand; of random ones see test_torchmetrics.py."""

from __future__ import annotations

import math

import numpy as np
import pytest

from training.evaluation.metrics import Absent, Confusion, ScoreError


def confusion(counts: list[list[int]]) -> Confusion:
    result = Confusion(len(counts))
    result.counts[:] = counts
    return result


def test_worked_by_hand() -> None:
    """t = (4, 6); unions 3 + 1 + 2 = 6 and 4 + 2 + 1 = 7."""
    scores = confusion([[3, 1], [2, 4]]).scores()
    assert scores.pixel_accuracy == pytest.approx(7 / 10)
    assert scores.mean_accuracy == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert scores.class_iu == pytest.approx([3 / 6, 4 / 7])
    assert scores.mean_iu == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert scores.frequency_weighted_iu == pytest.approx((4 * 3 / 6 + 6 * 4 / 7) / 10)


def test_a_class_that_occurs_nowhere_is_left_out() -> None:
    scores = confusion([[5, 0, 0], [0, 5, 0], [0, 0, 0]]).scores()
    assert math.isnan(scores.class_iu[2])
    assert scores.mean_iu == scores.mean_accuracy == scores.frequency_weighted_iu == 1.0
    assert scores.to_dict(("a", "b", "c"))["class_iu"] == {"a": 1.0, "b": 1.0, "c": None}


@pytest.mark.parametrize(
    ("absent", "class_iu", "mean_iu", "mean_accuracy"),
    [
        (
            "exclude_gt",
            [6 / 8, 1 / 3, math.nan, math.nan],
            (6 / 8 + 1 / 3) / 2,
            (6 / 7 + 1 / 3) / 2,
        ),
        ("nan", [6 / 8, 1 / 3, 0, math.nan], (6 / 8 + 1 / 3) / 3, (6 / 7 + 1 / 3) / 2),
        ("zero", [6 / 8, 1 / 3, 0, 0], (6 / 8 + 1 / 3) / 4, (6 / 7 + 1 / 3) / 4),
    ],
)
def test_absent_classes(
    absent: Absent, class_iu: list[float], mean_iu: float, mean_accuracy: float
) -> None:
    """t = (7, 3, 0, 0); class 2 is predicted twice, class 3 never. Unions: 7 + 7 - 6 and 3 + 1 - 1.

    The two wrong pixels of class 2 count against 0 and 1 in every mode.
    """
    scores = confusion([[6, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).scores(absent)
    assert scores.class_iu == pytest.approx(class_iu, nan_ok=True)
    assert scores.mean_iu == pytest.approx(mean_iu)
    assert scores.mean_accuracy == pytest.approx(mean_accuracy)
    assert scores.pixel_accuracy == pytest.approx(7 / 10)
    assert scores.frequency_weighted_iu == pytest.approx((7 * 6 / 8 + 3 * 1 / 3) / 10)


def test_shapes_must_agree() -> None:
    with pytest.raises(ScoreError, match=r"\(2, 3\).*\(3, 2\)"):
        Confusion(2).add(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))


def test_a_prediction_that_is_no_class_is_refused() -> None:
    with pytest.raises(ScoreError, match="prediction 2 is not below 2"):
        Confusion(2).add(np.zeros((1, 1), np.uint8), np.full((1, 1), 2, np.uint8))


def test_nothing_labelled() -> None:
    matrix = Confusion(2)
    matrix.add(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8))
    with pytest.raises(ScoreError, match="no labelled pixel"):
        matrix.scores()
