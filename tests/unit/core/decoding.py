"""Files decoded as the server does, whole or damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from service.core.images.decode import decode
from service.core.images.header import read_header
from service.errors import ServiceError
from tests.drawing import UInt8Array


def read(body: bytes, max_bytes: int = 1 << 24, max_pixels: int = 1 << 20) -> UInt8Array:
    return decode(body, read_header(body, max_bytes=max_bytes), max_pixels=max_pixels)


def grey_rgb(grey: Any) -> Any:
    return np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)


def outcomes(
    rng: np.random.Generator,
    bodies: Sequence[bytes],
    where: Callable[[bytes], tuple[int, int]],
) -> set[str]:
    """How reading them ends, 3000 times, with bytes changed between two places and a cut."""
    kinds: set[str] = set()
    for n in range(3000):
        body = bytearray(bodies[n % len(bodies)])
        first, end = where(bytes(body))
        for _ in range(rng.integers(1, 5)):
            body[int(rng.integers(first, min(end, len(body))))] = int(rng.integers(0, 256))
        cut = len(body) if rng.random() < 0.8 else int(rng.integers(1, len(body)))
        try:
            image = read(bytes(body[:cut]))
            assert image.ndim == 3
            assert image.shape[0] * image.shape[1] <= 1 << 20
            kinds.add("read")
        except ServiceError as error:
            assert len(str(error)) > 20
            kinds.add(error.kind)
    return kinds
