"""Images of several sizes in one tensor: each in its top left corner, with zeros after it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]


def frame(images: Sequence[UInt8Array]) -> tuple[int, int]:
    """Height and width that hold each of them."""
    return max(image.shape[0] for image in images), max(image.shape[1] for image in images)


def padded_pixels(images: Sequence[UInt8Array]) -> int:
    """N * H * W of a batch of them."""
    height, width = frame(images)
    return len(images) * height * width


def stack(images: Sequence[UInt8Array], out: UInt8Array | None = None) -> UInt8Array:
    """uint8 [H,W,3] -> uint8 [N,H,W,3] as the frame has it, in `out` if that is given."""
    batch = np.empty((len(images), *frame(images), 3), np.uint8) if out is None else out
    for place, image in zip(batch, images, strict=True):
        height, width = image.shape[:2]
        place[:height, :width] = image
        place[height:] = 0
        place[:height, width:] = 0
    return batch
