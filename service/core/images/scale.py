"""Makes images smaller and larger, and answers as large as the image again.

The network is given the size that it learned at, and each pixel of the answer has what the
network's pixel around it has. At the borders of classes in images enlarged eight times, logits
upsampled bilinearly gave no better labels, and took much longer (bench/LOG.md, "any photo").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.core.types import UInt8Array

_STRIP_PIXELS = 1 << 18
"""Pixels that are in Pillow at a time, where each takes four bytes."""


def averaged(rgb: UInt8Array, reduction: int) -> UInt8Array:
    """Makes each square of `reduction` pixels one, their mean, as decoding a JPEG so does nearly.

    rgb: uint8 [H,W,3] -> [ceil(H / reduction), ceil(W / reduction), 3].
    """
    height, width = rgb.shape[:2]
    made = np.empty((-(-height // reduction), -(-width // reduction), 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // (width * reduction))
    for top in range(0, len(made), rows):
        strip = np.ascontiguousarray(rgb[top * reduction : (top + rows) * reduction])
        made[top : top + rows] = np.asarray(Image.fromarray(strip).reduce(reduction))
    return made


def resized(rgb: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Resamples uint8 [H,W,3] to `size`, (height, width), by Pillow's bicubic filter, which is
    widened where the image becomes smaller."""
    if rgb.shape[:2] == size:
        return rgb
    image = Image.fromarray(np.ascontiguousarray(rgb))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def enlarged(answer: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Gives every pixel of `size`, (height, width), what the pixel around its centre has.

    answer: [...,h,w] -> [...,H,W], or smaller.
    """
    rows, columns = (
        (2 * np.arange(of) + 1) * side // (2 * of)
        for side, of in zip(answer.shape[-2:], size, strict=True)
    )
    # Columns first, of the fewer rows: rows are then copied whole.
    made: npt.NDArray[Any] = np.take(np.take(answer, columns, axis=-1), rows, axis=-2)
    return made
