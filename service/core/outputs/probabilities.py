"""Writes the probability of every class at every pixel, as an array for numpy."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import numpy.typing as npt

from service.core.outputs.registry import NPY, OutputFormat
from service.core.outputs.scores import ScoreArray, blocks, settle_ties
from service.core.types import Dtype, Float32Array, UInt8Array
from service.errors import ImageTooLarge

MAX_BYTES: Final = 512 * 1024 * 1024
"""Limits the probabilities of one image."""


def check_size(height: int, width: int, classes: int, dtype: Dtype) -> None:
    """Raises: ImageTooLarge when the probabilities would not fit in `MAX_BYTES`."""
    n_bytes = height * width * classes * np.dtype(dtype).itemsize
    if n_bytes > MAX_BYTES:
        raise ImageTooLarge(
            f"the probabilities of {classes} classes in an image of {height}x{width} (height x "
            f"width) are {n_bytes} bytes as {dtype} and this server answers with up to "
            f"{MAX_BYTES}: scale it down, name fewer classes, or ask for dtype={Dtype.UINT8}"
        )


def probabilities(
    logits: Float32Array, label_map: UInt8Array, dtype: Dtype, selected: frozenset[int] | None
) -> ScoreArray:
    """Makes [K,H,W]: soft max over all classes, of those that are selected, by id.

    logits: float32 [C,H,W]. uint8 is 255 times the probability, rounded; float16 is 0 below the
    least normal number, 2**-14. The first of the largest is always the label: where rounding made
    an earlier class as large, that is one step smaller.
    """
    classes = len(logits)
    ids = None if selected is None else sorted(selected)
    scores = np.empty((classes if ids is None else len(ids), *label_map.shape), np.dtype(dtype))
    # As integers, the halves from 0 to 1 are in the same order, and compared in no time.
    integers = scores if dtype is Dtype.UINT8 else scores.view(np.uint16)
    for rows, exponentials, sums in blocks(logits):
        block = integers[:, rows]
        rounded = block if ids is None else np.empty(exponentials.shape, integers.dtype)
        largest = np.float32(255 if dtype is Dtype.UINT8 else 1)
        exponentials *= np.divide(largest, sums, out=sums)
        if dtype is Dtype.UINT8:
            np.rint(exponentials, out=exponentials)
            np.copyto(rounded, exponentials, casting="unsafe")
        else:
            _halve(exponentials, rounded)
        settle_ties(rounded, label_map[rows])
        if ids is not None:
            block[...] = rounded[ids]
    return scores


def npy(scores: ScoreArray) -> bytes:
    """Writes the file that `numpy.load` reads."""
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


def _halve(values: Float32Array, halves: npt.NDArray[np.uint16]) -> None:
    """Turns float32 from 0 to 1 into the bits of float16, rounded; below 2**-14 is 0.

    `values` is lost. numpy converts one number at a time, which took longer than the network.
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


OUTPUT = OutputFormat(
    "probabilities",
    NPY,
    lambda reply: npy(reply.scores),
    options=("dtype",),
    answers_media_type=True,
    reduce=lambda logits, label_map, options, selected: probabilities(
        logits, label_map, options.dtype, selected
    ),
    check_size=lambda height, width, classes, options: check_size(
        height, width, classes, options.dtype
    ),
)
