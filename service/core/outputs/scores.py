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
_BLOCK: Final = 1 << 17
"""Logits at a time: their half megabyte stays in a core's cache from one step to the next, and a
step takes so long that calling numpy for it does not count."""
_LEAST_SUM: Final = 1e-25
_LARGEST_SUM: Final = 1e30
"""Of the exponentials of a pixel's logits as they are. Between these a float32 has room for all of
them, and for their sum, and what is too small for it is less than 1e-12 of the sum."""


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
        for rows, exponentials, sums in _blocks(logits):
            exponentials *= np.divide(np.float32(1), sums, out=sums)
            _settle(exponentials, label_map[rows])
            array[:, rows] = exponentials
    return found


def probabilities(
    logits: Float32Array, label_map: UInt8Array, dtype: Dtype, kept: frozenset[int] | None
) -> ScoreArray:
    """[K,H,W]: soft max over all classes, of those that are kept, by id.

    logits: float32 [C,H,W]. uint8 is 255 times the probability, rounded; float16 is 0 below the
    least normal number, 2**-14. The first of the largest is always the label: where rounding made
    an earlier class as large, that is one step smaller.
    """
    classes = len(logits)
    ids = None if kept is None else sorted(kept)
    scores = np.empty((classes if ids is None else len(ids), *label_map.shape), np.dtype(dtype))
    # As integers, the halves from 0 to 1 are in the same order, and compared in no time.
    integers = scores if dtype is Dtype.UINT8 else scores.view(np.uint16)
    for rows, exponentials, sums in _blocks(logits):
        block = integers[:, rows]
        rounded = block if ids is None else np.empty(exponentials.shape, integers.dtype)
        largest = np.float32(255 if dtype is Dtype.UINT8 else 1)
        exponentials *= np.divide(largest, sums, out=sums)
        if dtype is Dtype.UINT8:
            np.rint(exponentials, out=exponentials)
            np.copyto(rounded, exponentials, casting="unsafe")
        else:
            _halve(exponentials, rounded)
        _settle(rounded, label_map[rows])
        if ids is not None:
            block[...] = rounded[ids]
    return scores


def confidence(
    logits: Float32Array, label_map: UInt8Array, kept: frozenset[int] | None
) -> UInt8Array:
    """uint8 [H,W]: 255 times the probability of the label, rounded; 0 where it is not kept."""
    values = np.empty(label_map.shape, np.uint8)
    for rows, exponentials, sums in _blocks(logits):
        largest = np.maximum.reduce(exponentials, axis=0)
        largest *= np.float32(255)
        largest /= sums
        np.copyto(values[rows], np.rint(largest, out=largest), casting="unsafe")
    if kept is not None:
        table = np.zeros(256, bool)
        table[list(kept)] = True
        values *= table[label_map]
    return values


def npy(scores: ScoreArray) -> bytes:
    """The file that `numpy.load` reads."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head,
        {
            "descr": np.lib.format.dtype_to_descr(scores.dtype),
            "fortran_order": False,
            "shape": scores.shape,
        },
    )
    # numpy.save would copy the numbers twice.
    return b"".join((head.getvalue(), np.ascontiguousarray(scores).data))


def _blocks(logits: Float32Array) -> Iterator[tuple[slice, Float32Array, Float32Array]]:
    """Some rows of the picture at a time, with numbers [C,h,W] in proportion to the probabilities
    of theirs, and the sums of those [h,W]. Both are the caller's until the next.
    """
    classes, height, width = logits.shape
    step = min(height, max(1, _BLOCK // (classes * width)))
    room, sums = np.empty((classes, step, width), np.float32), np.empty((step, width), np.float32)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        block, powers, sum_ = logits[:, rows], room[:, : height - top], sums[: height - top]
        # Ordinary logits are far from what exp takes, and need not be made smaller.
        with np.errstate(over="ignore"):
            np.exp(block, out=powers)
            np.add.reduce(powers, axis=0, out=sum_)
        if not (sum_.min() > _LEAST_SUM and sum_.max() < _LARGEST_SUM):
            np.subtract(block, block.max(axis=0), out=powers)
            np.exp(powers, out=powers)
            np.add.reduce(powers, axis=0, out=sum_)
        yield rows, powers, sum_


def _halve(values: Float32Array, halves: npt.NDArray[np.uint16]) -> None:
    """float32 from 0 to 1 -> the bits of float16, rounded; below 2**-14 is 0. `values` is lost.

    numpy converts one number at a time, which took longer than the network.
    """
    # Too little to change a number that counts, and keeps all others within 16 bits below.
    values += np.float32(2.0**-40)
    bits = values.view(np.int32)
    # The exponent's bias is 127 in one and 15 in the other, and 13 bits of the fraction go.
    bits -= (112 << 23) - (1 << 12)
    bits >>= 13
    signed = halves.view(np.int16)
    np.copyto(signed, bits, casting="unsafe")
    signed *= signed >= 1 << 10


def _settle(scores: ScoreArray, labels: UInt8Array) -> None:
    """Makes `scores` [C,h,w] have their first maximum at `labels` [h,w]."""
    # As integers, floats from 0 to 1 are in the same order, and halves compared in no time.
    scores = scores.view(np.dtype(f"u{scores.dtype.itemsize}"))
    largest = np.maximum.reduce(scores, axis=0)
    ids = np.arange(len(scores), dtype=np.uint8)[:, None, None]
    # Where the label is not the largest, or not the only one.
    wrong = np.bitwise_or.reduce((scores == largest) ^ (labels == ids), axis=0)
    places = np.flatnonzero(wrong)  # much faster than of two dimensions
    if not len(places):
        return
    rows, columns = np.divmod(places, labels.shape[1])
    tied, label = scores[:, rows, columns], labels[rows, columns]
    top = largest[rows, columns]
    earlier = np.arange(len(scores))[:, None] < label
    tied = np.minimum(tied, top - earlier.astype(top.dtype))
    tied[label, np.arange(len(label))] = top
    scores[:, rows, columns] = tied
