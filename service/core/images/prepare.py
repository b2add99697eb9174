"""Makes an upload's pixels the tensor a model asks for, and cuts its answer to their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from model.contract import InputSpec
from service.core.types import UInt8Array
from service.errors import ImageTooLarge

S = TypeVar("S", bound=np.generic)


def prepare(rgb: UInt8Array, spec: InputSpec) -> UInt8Array:
    """Pads bottom and right with zeros up to the model's smallest side and multiple.

    rgb: uint8 [H,W,3]. Pixels are never resampled, so that `restore` is exact. The tensor is
    C-contiguous.

    Raises: ImageTooLarge when a side is above the model's, before or after padding.
    """
    height, width = rgb.shape[:2]
    padded = tuple(_side(px, spec) for px in (height, width))
    if spec.max_side_px is not None and max(padded) > spec.max_side_px:
        limit = spec.max_side_px - spec.max_side_px % spec.multiple_of_px
        raise ImageTooLarge(
            f"the image is {height}x{width} (height x width) and this model takes sides up to "
            f"{limit} px: scale it down"
        )
    if padded == (height, width):
        return np.ascontiguousarray(rgb)
    tensor = np.zeros((*padded, 3), np.uint8)
    tensor[:height, :width] = rgb
    return tensor


def restore(answer: npt.NDArray[S], height: int, width: int) -> npt.NDArray[S]:
    """Cuts [...,H',W'] as the model gave it to [...,H,W] of the upload."""
    return answer[..., :height, :width]


def ordinary_size(spec: InputSpec, side_px: int = 256) -> tuple[int, int] | None:
    """Finds the (height, width) of a square the model takes, `side_px` if it can; None if none."""
    side = _side(side_px, spec)
    if spec.max_side_px is not None and side > spec.max_side_px:
        side = spec.max_side_px - spec.max_side_px % spec.multiple_of_px
        if side < max(1, spec.min_side_px):
            return None
    return side, side


def accepted_sizes(sizes: Sequence[tuple[int, int]], spec: InputSpec) -> list[tuple[int, int]]:
    """Sizes the tensors for images of (height, width), without those the model does not take."""
    padded = [(_side(height, spec), _side(width, spec)) for height, width in sizes]
    limit = spec.max_side_px
    return list(dict.fromkeys(size for size in padded if limit is None or max(size) <= limit))


def _side(px: int, spec: InputSpec) -> int:
    return -(-max(px, spec.min_side_px) // spec.multiple_of_px) * spec.multiple_of_px
