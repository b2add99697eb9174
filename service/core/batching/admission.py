"""Bounds what the service holds at once over all its models: requests, uploads, their memory."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

from service.core.batching.policy import InferenceRequest
from service.core.batching.queue import BatchQueue, leaves_room
from service.core.engines.memory import BYTES_PER_ADMITTED_PIXEL
from service.core.images.decode import check_pixels
from service.core.images.header import Header
from service.core.types import Observer, Priority
from service.errors import ImageTooLarge, Overloaded

BYTES_PER_PREPARED_PIXEL: Final = 6
"""Bytes for RGB as it was decoded, and as the network reads it."""
WORTH_A_TURN_BYTES: Final = 4 << 20
"""Less is given back with the answer: a turn of the event loop costs more."""


class Admission:
    """Counts what is held, on one event loop."""

    def __init__(
        self,
        *,
        max_requests: int,
        max_bytes: int,
        max_pixels: int,
        max_memory_bytes: int,
        max_decode_bytes: int,
        observer: Observer,
    ) -> None:
        """Takes the limits; a request larger than max_bytes or max_memory_bytes still fits when
        nothing else is held.

        max_bytes: of the uploads. max_pixels: of one image. max_memory_bytes: that images take,
        decoded and while they are. max_decode_bytes: that one may take while it is.
        """
        self._max_pixels = max_pixels
        self._max_decode_bytes = max_decode_bytes
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._max_memory_bytes = max_memory_bytes
        self._observer = observer
        self._requests = 0
        self._bytes = 0
        self._memory_bytes = 0
        self._of_client: dict[str, tuple[int, int, int]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def requests(self) -> int:
        return self._requests

    @property
    def held(self) -> tuple[int, int, int]:
        """Counts requests, the bytes of their uploads, and those that their images take."""
        return self._requests, self._bytes, self._memory_bytes

    def check(
        self, queue: BatchQueue, n_bytes: int = 0, memory_bytes: int = 0, client: str = ""
    ) -> None:
        """Finds out whether so much fits now, beside what others may want. Raises: Overloaded."""
        own = self._of_client.get(client, (0, 0, 0))
        new = 1, n_bytes, memory_bytes
        bounds = self._max_requests, self._max_bytes, self._max_memory_bytes
        if self._requests and not all(map(leaves_room, own, new, self.held, bounds)):
            self._observer.rejected("overloaded")
            raise Overloaded(queue.retry_after_s())

    def admit(
        self,
        queue: BatchQueue,
        header: Header,
        n_bytes: int,
        deadline: float | None = None,
        priority: Priority = Priority.NORMAL,
        client: str = "",
        network_pixels: int = 0,
        reduction: int = 1,
    ) -> Permit:
        """Takes room here and in a model's queue, until the end of the permit's `with` block.

        n_bytes: of the upload. client: who takes turns with others, and leaves them room.
        network_pixels: those that the network computes for, if not the image's. reduction: see
        `service.core.images.decode.decode_reduced`.

        Raises: ImageTooLarge, Overloaded, and as `BatchQueue.reserve`.
        """
        check_pixels(header.height, header.width, self._max_pixels)
        decode_bytes = header.reduced_bytes(reduction)
        if decode_bytes > self._max_decode_bytes:
            raise ImageTooLarge(
                f"to decode this {header.format} file takes {decode_bytes >> 20} MiB and "
                f"this server has {self._max_decode_bytes >> 20} for an image: scale it down, or "
                "save it as a baseline JPEG"
            )
        pixels = network_pixels or header.pixels
        held_bytes = BYTES_PER_ADMITTED_PIXEL * header.pixels
        memory_bytes = max(decode_bytes, BYTES_PER_PREPARED_PIXEL * pixels, held_bytes)
        self.check(queue, n_bytes, memory_bytes, client)
        request = queue.reserve(pixels, deadline, priority, client)
        self._hold(client, 1, n_bytes, memory_bytes)
        return Permit(self, queue, request, n_bytes, memory_bytes, held_bytes)

    async def until_idle(self) -> None:
        await self._idle.wait()

    def _hold(self, client: str, requests: int, n_bytes: int, memory_bytes: int) -> None:
        own = self._of_client.get(client, (0, 0, 0))
        self._of_client[client] = own[0] + requests, own[1] + n_bytes, own[2] + memory_bytes
        if not self._of_client[client][0]:
            del self._of_client[client]
        self._requests += requests
        self._bytes += n_bytes
        self._memory_bytes += memory_bytes
        if requests:
            self._observer.inflight(self._requests)
            if self._requests:
                self._idle.clear()
            else:
                self._idle.set()


class Permit:
    """Holds one request's room: its bytes here, and its slot in a model's queue."""

    __slots__ = (
        "_admission",
        "_bytes",
        "_ended",
        "_held_bytes",
        "_memory_bytes",
        "_queue",
        "request",
    )

    def __init__(
        self,
        admission: Admission,
        queue: BatchQueue,
        request: InferenceRequest,
        n_bytes: int,
        memory_bytes: int,
        held_bytes: int,
    ) -> None:
        """memory_bytes: until the image is decoded; held_bytes: from then on."""
        self._admission = admission
        self._queue = queue
        self._bytes = n_bytes
        self._ended = False
        self.request = request
        self._memory_bytes = memory_bytes
        self._held_bytes = held_bytes

    def decoded(self) -> None:
        """Gives back what only decoding takes; called on any thread."""
        if self._memory_bytes - self._held_bytes > WORTH_A_TURN_BYTES:
            self.request.future.get_loop().call_soon_threadsafe(self._hold_less)

    def _hold_less(self) -> None:
        if not self._ended:
            held = self._held_bytes - self._memory_bytes
            self._admission._hold(self.request.client, 0, 0, held)
            self._memory_bytes = self._held_bytes

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
        self._admission._hold(self.request.client, -1, -self._bytes, -self._memory_bytes)
