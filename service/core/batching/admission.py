"""Bounds what the service holds at once over all its models: requests, their bytes and pixels."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from service.core.batching.policy import InferenceRequest, leaves_room
from service.core.batching.queue import BatchQueue
from service.core.types import Observer, Priority
from service.errors import Overloaded


class Admission:
    """Counts what is held, on one event loop."""

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
        self._of_client: dict[str, tuple[int, int, int]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def requests(self) -> int:
        return self._requests

    @property
    def held(self) -> tuple[int, int, int]:
        """Counts requests, bytes and pixels."""
        return self._requests, self._bytes, self._pixels

    def check(self, queue: BatchQueue, n_bytes: int = 0, pixels: int = 0, client: str = "") -> None:
        """Finds out whether so much fits now, beside what others may want. Raises: Overloaded."""
        own = self._of_client.get(client, (0, 0, 0))
        wanted, bounds = (
            (1, n_bytes, pixels),
            (self._max_requests, self._max_bytes, self._max_pixels),
        )
        if self._requests and not all(map(leaves_room, own, wanted, self.held, bounds)):
            self._observer.rejected("overloaded")
            raise Overloaded(queue.retry_after_s())

    def admit(
        self,
        queue: BatchQueue,
        n_bytes: int,
        pixels: int,
        deadline: float | None = None,
        priority: Priority = Priority.NORMAL,
        client: str = "",
    ) -> Permit:
        """Takes room here and in a model's queue, until the end of the permit's `with` block.

        client: who takes turns with others, and leaves them room. Raises: Overloaded, and as
        `BatchQueue.reserve`.
        """
        self.check(queue, n_bytes, pixels, client)
        request = queue.reserve(pixels, deadline, priority, client)
        self._hold(client, 1, n_bytes, pixels)
        return Permit(self, queue, request, n_bytes, pixels)

    async def until_idle(self) -> None:
        await self._idle.wait()

    def _hold(self, client: str, requests: int, n_bytes: int, pixels: int) -> None:
        own = self._of_client.get(client, (0, 0, 0))
        self._of_client[client] = own[0] + requests, own[1] + n_bytes, own[2] + pixels
        if not self._of_client[client][0]:
            del self._of_client[client]
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
    """Holds one request's room: its bytes and pixels here, and its slot in a model's queue."""

    __slots__ = ("_admission", "_bytes", "_ended", "_queue", "pixels", "request")

    def __init__(
        self,
        admission: Admission,
        queue: BatchQueue,
        request: InferenceRequest,
        n_bytes: int,
        pixels: int,
    ) -> None:
        self._admission = admission
        self._queue = queue
        self._bytes = n_bytes
        self._ended = False
        self.request = request
        self.pixels = pixels

    def correct(self, pixels: int) -> None:
        """Holds as many pixels as the decoded image has, whatever its header seemed to say.

        May come late: after the end nothing is held.
        """
        if not self._ended:
            self._admission._hold(self.request.client, 0, 0, pixels - self.pixels)
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
        self._queue.release(self.request)
        self._admission._hold(self.request.client, -1, -self._bytes, -self.pixels)
