"""Computes how sure the network is: probabilities of the classes out of logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.core.types import Float32Array, Score, UInt8Array
from service.errors import ImageTooLarge

ScoreArray = npt.NDArray[Any]
"""uint8 or float16."""

_BLOCK: Final = 1 << 17
"""Logits at a time: their half megabyte stays in a core's cache from one step to the next, and a
step takes so long that calling numpy for it does not count."""
_LEAST_SUM: Final = 1e-25
_LARGEST_SUM: Final = 1e30
"""Bounds the exponentials of a pixel's logits: between these a float32 has room for all of
them, and for their sum, and what is too small for it is less than 1e-12 of the sum."""


def check_arrays(
    height: int, width: int, classes: int, wanted: Sequence[Score], max_bytes: int
) -> None:
    """Raises: ImageTooLarge when `arrays` would have more than `max_bytes`."""
    n_bytes = len(wanted) * classes * height * width * np.dtype(np.float32).itemsize
    if n_bytes > max_bytes:
        raise ImageTooLarge(
            f"the {' and '.join(wanted)} of {classes} classes in an image of {height}x{width} "
            f"(height x width) are {n_bytes} bytes as float32, and here an image is answered with "
            f"up to {max_bytes}: scale it down, send fewer images in one request, or ask for "
            "bytes rather than numbers"
        )


def arrays(logits: Float32Array, label_map: UInt8Array, wanted: Sequence[Score]) -> Float32Array:
    """Makes [K,C,H,W]: a copy of the logits, or soft max over all classes, for each of `wanted`.

    The first of the largest is always the label, as in `probabilities`.
    """
    found = np.empty((len(wanted), *logits.shape), np.float32)
    for score, array in zip(wanted, found, strict=True):
        if score is Score.LOGITS:
            array[...] = logits
            continue
        for rows, exponentials, sums in blocks(logits):
            exponentials *= np.divide(np.float32(1), sums, out=sums)
            settle_ties(exponentials, label_map[rows])
            array[:, rows] = exponentials
    return found


def blocks(logits: Float32Array) -> Iterator[tuple[slice, Float32Array, Float32Array]]:
    """Yields some rows of the image at a time, with numbers [C,h,W] in proportion to their
    probabilities, and the sums of those [h,W]. Both are the caller's until the next.
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


def settle_ties(scores: ScoreArray, labels: UInt8Array) -> None:
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
