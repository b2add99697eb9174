"""Draws the images that are sent: street scenes, the same in every run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.datasets import drawn

UInt8Array = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""(height, width)"""


def scene(size: Size, seed: int = 0) -> UInt8Array:
    """Draws uint8 RGB [H,W,3]."""
    return drawn.draw(*size, np.random.default_rng(seed)).image


def batch(count: int, size: Size) -> UInt8Array:
    """Draws uint8 RGB [N,H,W,3], no two images alike."""
    return np.stack([scene(size, seed) for seed in range(count)])


def jpeg(size: Size, seed: int = 0) -> bytes:
    return drawn.jpeg(*size, seed)


def write_jpeg(path: Path, size: Size) -> Path:
    """Writes the file that load generators send, and gives its path back."""
    path.write_bytes(jpeg(size))
    return path
