"""How much the service holds at once over all its models: requests, their bytes, their pixels."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from service.core.types import Observer


class Admission:
    """Counts what is held. All on one event loop."""

    def __init__(
        self, *, max_requests: int, max_bytes: int, max_pixels: int, observer: Observer
    ) -> None:
        """A request larger than max_bytes or max_pixels still fits when nothing else is held."""
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._observer = observer
        self._requests = 0
        self._bytes = 0
        self._pixels = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def requests(self) -> int:
        return self._requests

    @property
    def held(self) -> tuple[int, int, int]:
        """Requests, bytes, pixels."""
        return self._requests, self._bytes, self._pixels

    def fits(self, n_bytes: int = 0, pixels: int = 0) -> bool:
        return not self._requests or (
            self._requests < self._max_requests
            and self._bytes + n_bytes <= self._max_bytes
            and self._pixels + pixels <= self._max_pixels
        )

    def admit(self, n_bytes: int, pixels: int) -> Permit:
        """Ask `fits` first."""
        self._hold(1, n_bytes, pixels)
        return Permit(self, n_bytes, pixels)

    async def until_idle(self) -> None:
        await self._idle.wait()

    def _hold(self, requests: int, n_bytes: int, pixels: int) -> None:
        self._requests += requests
        self._bytes += n_bytes
        self._pixels += pixels
        if requests:
            self._observer.inflight(self._requests)
            if self._requests:
                self._idle.clear()
            else:
                self._idle.set()


class Permit:
    """What one request holds, until the end of its `with` block."""

    __slots__ = ("_admission", "_bytes", "_ended", "pixels")

    def __init__(self, admission: Admission, n_bytes: int, pixels: int) -> None:
        self._admission = admission
        self._bytes = n_bytes
        self.pixels = pixels
        self._ended = False

    def correct(self, pixels: int) -> None:
        """The picture is decoded: so many it has, whatever its header seemed to say.

        May come late: after the end nothing is held.
        """
        if not self._ended:
            self._admission._hold(0, 0, pixels - self.pixels)
            self.pixels = pixels

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = True
        self._admission._hold(-1, -self._bytes, -self.pixels)
