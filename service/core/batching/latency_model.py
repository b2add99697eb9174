"""Predicts how long runs take, from those before."""

from __future__ import annotations

from typing import Final

# What a run costs besides its pixels, as so many pixels: without it a few tiny images would make
# every large one look hours away.
RUN_OVERHEAD_PX: Final = 16_384
# What a run counts after ten more: follows a change of load within some ten runs.
_MEMORY: Final = 0.8


class LatencyModel:
    """Predicts the seconds of a run from its pixels: a mean in which old runs fade."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._pixels = 0.0

    @property
    def is_seeded(self) -> bool:
        return self._pixels > 0

    def seed(self, pixels: int, seconds: float) -> None:
        """Gives a first idea: what one image took in the warm-up."""
        self.update(pixels, 1, seconds)

    def update(self, pixels: int, images: int, seconds: float) -> None:
        """Learns from a run of `images` with `pixels` in all."""
        self._seconds = self._seconds * _MEMORY + max(0.0, seconds)
        self._pixels = self._pixels * _MEMORY + pixels + images * RUN_OVERHEAD_PX

    def seconds(self, pixels: float, images: int = 1) -> float:
        """Predicts what one instance needs for so much; 0 before the first run."""
        if not self._pixels:
            return 0.0
        return (pixels + images * RUN_OVERHEAD_PX) * self._seconds / self._pixels
