"""Reads depth as a channel beside colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.datasets.base import DatasetError, read_pixels

LogDepth = npt.NDArray[np.float32]
"""float32 [H,W,1], natural logarithm of millimetres."""


def read_log_depth(path: Path) -> LogDepth:
    """Read a 16-bit PNG of millimetres. Raises: DatasetError."""
    depth_mm = read_pixels(path, "depth").values
    if depth_mm.ndim != 2 or depth_mm.dtype.itemsize < 2:
        raise DatasetError(f"{path} is no depth: want a 16-bit greyscale PNG of millimetres")
    return log_depth(depth_mm, str(path))


def log_depth(depth_mm: npt.NDArray[Any], source: str) -> LogDepth:
    """Convert [H,W] millimetres to `LogDepth`.

    Raises: DatasetError for a pixel without depth, as the raw depth has them: it has no logarithm.
    """
    if not (depth_mm > 0).all():
        raise DatasetError(
            f"{source} has pixels without depth: want the depth whose holes were filled, not the "
            "raw one"
        )
    return np.log(depth_mm.astype(np.float32))[:, :, None]


def joined(image: npt.NDArray[Any], more: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """Join [H,W,C] and [H,W,K] to [H,W,C+K], float32 if either is. Raises: DatasetError if their
    sizes differ; `path`: of `more`."""
    if image.shape[:2] != more.shape[:2]:
        raise DatasetError(
            f"{path} is {more.shape[0]}x{more.shape[1]} but its colour image is "
            f"{image.shape[0]}x{image.shape[1]}: they must be the same size"
        )
    return np.concatenate([image, more], axis=2)
