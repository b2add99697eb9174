"""From an upload's pixels to the tensor a model asks for, and back to the upload's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from model.contract import InputSpec
from service.errors import ImageTooLarge

UInt8Array = npt.NDArray[np.uint8]
S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the upload lies in the tensor: its top-left height x width pixels."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """`tensor`: uint8 RGB [H,W,3], C-contiguous, of a size the model accepts."""

    tensor: UInt8Array
    geometry: Geometry


def prepare(rgb: UInt8Array, spec: InputSpec) -> Prepared:
    """Pads bottom and right with zeros up to the model's smallest side and multiple.

    rgb: uint8 [H,W,3]. Pixels are never resampled, so that `restore` is exact.

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
    geometry = Geometry(height, width)
    if padded == (height, width):
        return Prepared(np.ascontiguousarray(rgb), geometry)
    tensor = np.zeros((*padded, 3), np.uint8)
    tensor[:height, :width] = rgb
    return Prepared(tensor, geometry)


def restore(label_map: npt.NDArray[S], geometry: Geometry) -> npt.NDArray[S]:
    """[...,H',W'] as the model gave it -> [...,H,W] of the upload."""
    return label_map[..., : geometry.height, : geometry.width]


def ordinary_size(spec: InputSpec, side_px: int = 256) -> tuple[int, int] | None:
    """(height, width) of a square the model takes, `side_px` if it can; None if it takes none."""
    side = _side(side_px, spec)
    if spec.max_side_px is not None and side > spec.max_side_px:
        side = spec.max_side_px - spec.max_side_px % spec.multiple_of_px
        if side < max(1, spec.min_side_px):
            return None
    return side, side


def accepted_sizes(sizes: Sequence[tuple[int, int]], spec: InputSpec) -> list[tuple[int, int]]:
    """(height, width) of the tensors for pictures of `sizes`, without those it does not take."""
    padded = [(_side(height, spec), _side(width, spec)) for height, width in sizes]
    limit = spec.max_side_px
    return list(dict.fromkeys(size for size in padded if limit is None or max(size) <= limit))


def _side(px: int, spec: InputSpec) -> int:
    return -(-max(px, spec.min_side_px) // spec.multiple_of_px) * spec.multiple_of_px
