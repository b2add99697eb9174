from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.outputs import scores
from service.core.outputs.confidence import confidence
from service.core.outputs.probabilities import _halve, check_size, npy, probabilities
from service.core.outputs.scores import arrays, check_arrays
from service.core.types import Dtype, Float32Array, Score
from service.errors import ImageTooLarge


def softmax(logits: Float32Array) -> npt.NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=0))
    shares: npt.NDArray[np.float64] = powers / powers.sum(axis=0)
    return shares


def drawn(seed: int, classes: int, spread: float) -> Float32Array:
    normal = np.random.default_rng(seed).normal(0, spread, (classes, 9, 7))
    return normal.astype(np.float32)


@given(
    seed=st.integers(0, 10_000),
    classes=st.sampled_from([1, 2, 3, 21, 255]),
    spread=st.sampled_from([0.0, 0.001, 1.0, 30.0]),
    dtype=st.sampled_from(list(Dtype)),
)
def test_they_are_the_soft_max_and_their_largest_is_the_label(
    seed: int, classes: int, spread: float, dtype: Dtype
) -> None:
    logits = drawn(seed, classes, spread)
    label_map = logits.argmax(axis=0).astype(np.uint8)
    got = probabilities(logits, label_map, dtype, None)
    assert (got.dtype, got.shape) == (np.dtype(dtype), logits.shape)
    assert (got.argmax(axis=0) == label_map).all()
    scale, step = (255, 1.51 / 255) if dtype is Dtype.UINT8 else (1, 2**-10)
    assert np.abs(got.astype(np.float64) / scale - softmax(logits)).max() <= step


def test_the_label_of_the_graph_counts_where_scores_tie() -> None:
    logits = np.zeros((4, 1, 3), np.float32)
    label_map = np.array([[0, 2, 3]], np.uint8)
    for dtype in Dtype:
        got = probabilities(logits, label_map, dtype, None)
        assert (got.argmax(axis=0) == label_map).all()
    assert probabilities(logits, label_map, Dtype.UINT8, None)[:, 0].T.tolist() == [
        [64, 64, 64, 64],
        [63, 63, 64, 64],
        [63, 63, 63, 64],
    ]


@given(
    seed=st.integers(0, 10_000),
    classes=st.sampled_from([1, 2, 3, 21, 255]),
    # With the small ones exp() rounds to 1 what is not the largest.
    spread=st.sampled_from([0.0, 1e-8, 0.001, 1.0, 30.0]),
    wanted=st.sampled_from([tuple(Score), tuple(reversed(Score)), (Score.PROBABILITIES,)]),
)
def test_arrays_are_the_logits_and_the_soft_max_and_their_largest_is_the_label(
    seed: int, classes: int, spread: float, wanted: tuple[Score, ...]
) -> None:
    logits = drawn(seed, classes, spread)
    label_map = logits.argmax(axis=0).astype(np.uint8)
    got = arrays(logits, label_map, wanted)
    assert (got.dtype, got.shape) == (np.dtype(np.float32), (len(wanted), *logits.shape))
    assert not np.shares_memory(got, logits)
    assert (got.argmax(axis=1) == label_map).all()
    for score, array in zip(wanted, got, strict=True):
        if score is Score.LOGITS:
            assert (array == logits).all()
        else:
            assert np.abs(array - softmax(logits)).max() <= 2**-20
            assert np.abs(array.sum(axis=0) - 1).max() <= 2**-18


def test_arrays_take_the_label_of_the_graph_where_scores_tie() -> None:
    label_map = np.array([[0, 2, 3]], np.uint8)
    (got,) = arrays(np.zeros((4, 1, 3), np.float32), label_map, (Score.PROBABILITIES,))
    assert (got.argmax(axis=0) == label_map).all()
    assert np.abs(got - 0.25).max() < 1e-7


def test_arrays_that_are_too_large_are_refused_by_their_size() -> None:
    check_arrays(100, 50, 3, (), 0)
    check_arrays(100, 50, 3, (Score.LOGITS,), 60_000)
    with pytest.raises(ImageTooLarge, match=r"logits and probabilities .*120000 bytes.*119999"):
        check_arrays(100, 50, 3, tuple(Score), 119_999)


def test_only_the_classes_kept_are_there_by_id() -> None:
    logits = drawn(0, 5, 2.0)
    label_map = logits.argmax(axis=0).astype(np.uint8)
    whole = probabilities(logits, label_map, Dtype.UINT8, None)
    some = probabilities(logits, label_map, Dtype.UINT8, frozenset({4, 1}))
    assert (some == whole[[1, 4]]).all()


@pytest.mark.parametrize("spread", [0.0, 1.0, 50.0])
def test_confidence_is_the_probability_of_the_label(spread: float) -> None:
    logits = drawn(1, 6, spread)
    label_map = logits.argmax(axis=0).astype(np.uint8)
    got = confidence(logits, label_map, None)
    assert np.abs(got - 255 * softmax(logits).max(axis=0)).max() <= 0.501
    kept = confidence(logits, label_map, frozenset({2}))
    assert (kept == np.where(label_map == 2, got, 0)).all()


def halves(values: Float32Array) -> npt.NDArray[np.float16]:
    bits = np.empty(values.shape, np.uint16)
    _halve(values.copy(), bits)
    return bits.view(np.float16)


def test_float16_is_rounded_to_the_nearest() -> None:
    values = np.linspace(2.0**-14, 1, 5001, dtype=np.float32)
    assert np.abs(halves(values) - values).max() <= 2.0**-12
    tiny = np.float32(2.0) ** -np.arange(15, 149, dtype=np.float32)
    assert not halves(tiny).any()
    assert halves(np.array([0, 1e-9, 6e-5, 1], np.float32)).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("offset", [-1e4, -80, -40, 40, 80, 1e4])
def test_logits_far_from_zero_count_by_their_differences(offset: float) -> None:
    logits = drawn(2, 5, 2.0)
    logits[:, 1] += np.float32(offset)  # one row only: the others are ordinary
    label_map = logits.argmax(axis=0).astype(np.uint8)
    expected = softmax(logits)
    got = probabilities(logits, label_map, Dtype.FLOAT16, None)
    assert np.abs(got - expected).max() <= 2**-10
    assert np.abs(confidence(logits, label_map, None) - 255 * expected.max(axis=0)).max() <= 0.501


def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = drawn(3, 5, 2.0)
    label_map = logits.argmax(axis=0).astype(np.uint8)
    whole = [probabilities(logits, label_map, dtype, None) for dtype in Dtype]
    sure = confidence(logits, label_map, None)
    monkeypatch.setattr(scores, "_BLOCK", 5 * 7 * 2)  # two rows of the nine
    assert len(list(scores.blocks(logits))) == 5
    for dtype, expected in zip(Dtype, whole, strict=True):
        assert (probabilities(logits, label_map, dtype, None) == expected).all()
    assert (confidence(logits, label_map, None) == sure).all()


@pytest.mark.parametrize("dtype", list(Dtype))
def test_the_file_is_numpys(dtype: Dtype) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    for part in (array, array[:, :2, 1:], array[:0]):
        plain = io.BytesIO()
        np.save(plain, part)
        assert npy(part) == plain.getvalue()


def test_what_would_not_fit_is_refused_with_what_would() -> None:
    check_size(4000, 5000, 20, Dtype.UINT8)
    with pytest.raises(ImageTooLarge, match=r"20 classes .* 4000x5000 .*800000000 bytes.*uint8"):
        check_size(4000, 5000, 20, Dtype.FLOAT16)
