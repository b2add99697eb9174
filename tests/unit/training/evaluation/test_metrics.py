"""The paper's four metrics, against matrices worked by hand and against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from training.evaluation.metrics import Absent, Confusion, ScoreError

UInt8 = npt.NDArray[np.uint8]


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


def test_rows_are_truth() -> None:
    matrix = Confusion(2)
    matrix.add(np.array([[0, 0, 1]], np.uint8), np.array([[1, 1, 1]], np.uint8))
    assert matrix.counts.tolist() == [[0, 2], [0, 1]]


def test_a_class_that_occurs_nowhere_is_left_out() -> None:
    scores = confusion([[5, 0, 0], [0, 5, 0], [0, 0, 0]]).scores()
    assert math.isnan(scores.class_iu[2])
    assert scores.mean_iu == scores.mean_accuracy == scores.frequency_weighted_iu == 1.0
    assert scores.to_dict(("a", "b", "c"))["class_iu"] == {"a": 1.0, "b": 1.0, "c": None}


def test_a_class_that_is_only_predicted_counts_as_zero() -> None:
    """The count is that of the authors' `score.py`; its accuracy has no meaning."""
    scores = confusion([[4, 1], [0, 0]]).scores()
    assert scores.class_iu == pytest.approx([4 / 5, 0])
    assert scores.mean_iu == pytest.approx(2 / 5)
    assert scores.mean_accuracy == pytest.approx(4 / 5)
    assert scores.frequency_weighted_iu == pytest.approx(4 / 5)


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


def test_the_default_is_what_the_authors_do() -> None:
    """`score.py`: iu = diag / (rows + columns - diag), then nanmean; accuracies likewise."""
    rng = np.random.default_rng(3)
    matrix = confusion(rng.integers(0, 9, (6, 6)).tolist())
    matrix.counts[2] = 0
    matrix.counts[5] = matrix.counts[:, 5] = 0
    hist = matrix.counts.astype(float)
    with np.errstate(invalid="ignore"):
        accuracy = np.diag(hist) / hist.sum(1)
        iu = np.diag(hist) / (hist.sum(1) + hist.sum(0) - np.diag(hist))
    freq = hist.sum(1) / hist.sum()
    scores = matrix.scores()
    assert scores.mean_accuracy == pytest.approx(np.nanmean(accuracy))
    assert scores.mean_iu == pytest.approx(np.nanmean(iu))
    assert scores.frequency_weighted_iu == pytest.approx((freq[freq > 0] * iu[freq > 0]).sum())


def test_geometric_accuracy_is_the_pixel_accuracy_of_its_own_matrix() -> None:
    """Horizontal, vertical, sky, and an unlabelled pixel: 3 of 4 are right."""
    geometry = Confusion(3)
    geometry.add(np.array([[0, 1, 1, 2, 255]], np.uint8), np.array([[0, 1, 2, 2, 0]], np.uint8))
    assert geometry.scores().pixel_accuracy == pytest.approx(3 / 4)


def test_images_add_up_before_the_quotient() -> None:
    """A data-set-wide matrix, not the mean of the images' scores."""
    matrix = Confusion(2)
    matrix.add(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    matrix.add(np.zeros((1, 3), np.uint8), np.ones((1, 3), np.uint8))
    assert matrix.scores().pixel_accuracy == pytest.approx(1 / 4)


def test_void_pixels_take_no_part_whatever_is_predicted_there() -> None:
    matrix = Confusion(2)
    matrix.add(np.array([[0, 255, 255]], np.uint8), np.array([[0, 1, 255]], np.uint8))
    assert matrix.counts.tolist() == [[1, 0], [0, 0]]


@given(st.data(), st.integers(1, 5), st.integers(1, 40))
def test_against_a_plain_loop(data: st.DataObject, classes: int, size: int) -> None:
    values = st.sampled_from([*range(classes), 255])
    target = data.draw(arrays(np.uint8, size, elements=values))
    predicted = data.draw(arrays(np.uint8, size, elements=st.integers(0, classes - 1)))
    matrix = Confusion(classes)
    matrix.add(target, predicted)
    pairs = [(int(t), int(p)) for t, p in zip(target, predicted, strict=True) if t != 255]
    if not pairs:
        with pytest.raises(ScoreError):
            matrix.scores()
        return
    ius, accuracies, weighted = [], [], 0.0
    for c in range(classes):
        hits = sum(t == p == c for t, p in pairs)
        union = sum(c in (t, p) for t, p in pairs)
        labelled = sum(t == c for t, _ in pairs)
        if union:
            ius.append(hits / union)
            weighted += labelled * hits / union
        if labelled:
            accuracies.append(hits / labelled)
    scores = matrix.scores()
    assert scores.pixel_accuracy == pytest.approx(sum(t == p for t, p in pairs) / len(pairs))
    assert scores.mean_iu == pytest.approx(sum(ius) / len(ius))
    assert scores.mean_accuracy == pytest.approx(sum(accuracies) / len(accuracies))
    assert scores.frequency_weighted_iu == pytest.approx(weighted / len(pairs))
    assert matrix.class_shares().sum() == pytest.approx(1)


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
