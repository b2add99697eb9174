"""One request, forward only: admit, decode, prepare, batch, run, undo, render.

REST and gRPC hold the same `Segmenter`; this is the only module that knows all the others.
"""

from __future__ import annotations

import time
from pathlib import Path

from service.core.types import (
    Clock,
    Limits,
    ModelState,
    ModelStatus,
    NullObserver,
    Observer,
    Output,
    SegmentReply,
    SegmentRequest,
    Timings,
    VersionStatus,
)

__all__ = [
    "Limits",
    "ModelState",
    "ModelStatus",
    "NullObserver",
    "Observer",
    "Output",
    "SegmentReply",
    "SegmentRequest",
    "Segmenter",
    "Timings",
    "VersionStatus",
]


class Segmenter:
    """`start`, then `segment` from any task of one event loop, then `drain` and `aclose`."""

    def __init__(
        self,
        repository: Path,
        *,
        limits: Limits | None = None,
        provider: str = "auto",
        threads: int | None = None,
        pool_workers: int | None = None,
        default_model: str | None = None,
        observer: Observer | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        raise NotImplementedError("being built")

    async def start(self) -> None:
        """Loads and warms up every model. Raises: ModelLoadError."""
        raise NotImplementedError("being built")

    async def segment(self, request: SegmentRequest) -> SegmentReply:
        """Raises: any ServiceError but ModelLoadError. Cancelling the task drops the work."""
        raise NotImplementedError("being built")

    def models(self) -> list[ModelStatus]:
        """By name."""
        raise NotImplementedError("being built")

    def ready(self) -> bool:
        raise NotImplementedError("being built")

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new work; True if all in flight finished within `timeout_s`."""
        raise NotImplementedError("being built")

    async def aclose(self) -> None:
        raise NotImplementedError("being built")
