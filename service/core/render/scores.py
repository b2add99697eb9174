"""Logits -> how sure the network is: probabilities of the classes, or of the label alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.core.types import Dtype, Score
from service.errors import ImageTooLarge

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
ScoreArray = npt.NDArray[Any]
"""uint8 or float16."""

MAX_BYTES: Final = 512 * 1024 * 1024
"""Of the probabilities of one picture."""
_STRIP: Final = 1 << 16
"""Logits at a time: as float32 they stay in the cache from one step to the next."""


def check_size(height: int, width: int, classes: int, dtype: Dtype) -> None:
    """Raises: ImageTooLarge when the probabilities would not fit in `MAX_BYTES`."""
    n_bytes = height * width * classes * np.dtype(dtype).itemsize
    if n_bytes > MAX_BYTES:
        raise ImageTooLarge(
            f"the probabilities of {classes} classes in a picture of {height}x{width} (height x "
            f"width) are {n_bytes} bytes as {dtype} and this server answers with up to "
            f"{MAX_BYTES}: scale it down, name fewer classes, or ask for dtype={Dtype.UINT8}"
        )


def check_arrays(
    height: int, width: int, classes: int, wanted: Sequence[Score], max_bytes: int
) -> None:
    """Raises: ImageTooLarge when `arrays` would have more than `max_bytes`."""
    n_bytes = len(wanted) * classes * height * width * np.dtype(np.float32).itemsize
    if n_bytes > max_bytes:
        raise ImageTooLarge(
            f"the {' and '.join(wanted)} of {classes} classes in a picture of {height}x{width} "
            f"(height x width) are {n_bytes} bytes as float32, and here a picture is answered with "
            f"up to {max_bytes}: scale it down, send fewer pictures in one request, or ask for "
            "bytes rather than numbers"
        )


def arrays(logits: Float32Array, label_map: UInt8Array, wanted: Sequence[Score]) -> Float32Array:
    """[K,C,H,W]: a copy of the logits, or soft max over all classes, for each of `wanted`.

    The first of the largest is always the label, as in `probabilities`.
    """
    found = np.empty((len(wanted), *logits.shape), np.float32)
    for score, array in zip(wanted, found, strict=True):
        if score is Score.LOGITS:
            array[...] = logits
            continue
        for rows, exponentials in _strips(logits):
            exponentials *= np.float32(1) / exponentials.sum(axis=0)
            _settle(exponentials, label_map[rows])
            array[:, rows] = exponentials
    return found


def probabilities(
    logits: Float32Array, label_map: UInt8Array, dtype: Dtype, kept: frozenset[int] | None
) -> ScoreArray:
    """[K,H,W]: soft max over all classes, of those that are kept, by id.

    logits: float32 [C,H,W]. uint8 is 255 times the probability, rounded; float16 is 0 below the
    least normal number, 2**-14. The first of the largest
    is always the label: where rounding made an earlier class as large, that is one step smaller.
    """
    classes = len(logits)
    ids = sorted(range(classes) if kept is None else kept)
    scores = np.empty((len(ids), *label_map.shape), np.dtype(dtype))
    for rows, exponentials in _strips(logits):
        largest = np.float32(255 if dtype is Dtype.UINT8 else 1)
        exponentials *= largest / exponentials.sum(axis=0)
        if dtype is Dtype.UINT8:
            rounded: ScoreArray = np.rint(exponentials, out=exponentials).astype(np.uint8)
        else:
            rounded = _halves(exponentials)
        _settle(rounded, label_map[rows])
        scores[:, rows] = rounded if kept is None else rounded[ids]
    return scores


def confidence(
    logits: Float32Array, label_map: UInt8Array, kept: frozenset[int] | None
) -> UInt8Array:
    """uint8 [H,W]: 255 times the probability of the label, rounded; 0 where it is not kept."""
    values = np.empty(label_map.shape, np.uint8)
    for rows, exponentials in _strips(logits):
        # The largest of the exponentials is 1.
        values[rows] = np.rint(255 / exponentials.sum(axis=0))
    if kept is not None:
        table = np.zeros(256, bool)
        table[list(kept)] = True
        values *= table[label_map]
    return values


def npy(scores: ScoreArray) -> bytes:
    """The file that `numpy.load` reads."""
    buffer = io.BytesIO()
    np.save(buffer, scores, allow_pickle=False)
    return buffer.getvalue()


def _strips(logits: Float32Array) -> Iterator[tuple[slice, Float32Array]]:
    """Some rows of the picture at a time, with exp(logit - largest logit) of theirs."""
    classes, height, width = logits.shape
    step = max(1, _STRIP // (classes * width))
    for top in range(0, height, step):
        rows = slice(top, top + step)
        strip = logits[:, rows]
        exponentials = strip - strip.max(axis=0)
        np.exp(exponentials, out=exponentials)
        yield rows, exponentials


def _halves(values: Float32Array) -> ScoreArray:
    """float32 from 0 to 1 -> float16, rounded; below 2**-14 is 0. `values` is overwritten.

    numpy converts one number at a time, which took longer than the network.
    """
    values *= values >= 2.0**-14
    bits = values.view(np.uint32)
    # The exponent's bias is 127 in one and 15 in the other, and 13 bits of the fraction go.
    np.maximum(bits, 112 << 23, out=bits)
    bits -= (112 << 23) - (1 << 12)
    bits >>= 13
    return bits.astype(np.uint16).view(np.float16)


def _settle(scores: ScoreArray, labels: UInt8Array) -> None:
    """Makes `scores` [C,h,w] have their first maximum at `labels` [h,w]."""
    # As integers, floats from 0 to 1 are in the same order, and halves compared in no time.
    scores = scores.view(np.dtype(f"u{scores.dtype.itemsize}"))
    largest = scores.max(axis=0)
    count, found = np.zeros((2, *labels.shape), np.uint8)
    for class_id, score in enumerate(scores):
        equal = (score == largest).view(np.uint8)
        count += equal
        found += equal * np.uint8(class_id)  # the class, where it is the only one
    rows, columns = np.nonzero((count > 1) | (found != labels))
    if not len(rows):
        return
    tied, label = scores[:, rows, columns], labels[rows, columns]
    top = largest[rows, columns]
    earlier = np.arange(len(scores))[:, None] < label
    tied = np.minimum(tied, top - earlier.astype(top.dtype))
    tied[label, np.arange(len(label))] = top
    scores[:, rows, columns] = tied
