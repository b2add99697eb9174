"""Reads bodies, and bounds those being read, of all connections and transports: how many, large
and slow.

`Content-Length` is not trusted: bytes are counted as they arrive, and what is over a limit is never
held.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    MutableMapping,
    Sequence,
)
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from service.errors import Cancelled, ImageTooLarge, Overloaded, UploadTooSlow

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""ASGI's, which gRPC's modules may not import."""
Received = Callable[[int], None]
"""Told how many bytes more are held; raises Overloaded."""

INLINE_BYTES: Final = 8 << 20
"""Less is copied sooner than a thread is woken."""
RETRY_UPLOAD_S: Final = 1.0
"""Told when too many bodies are being read: how long they take is up to those who send them."""


class Uploads:
    """Counts the bodies being read, and their bytes."""

    def __init__(
        self,
        *,
        max_count: int,
        max_bytes: int,
        timeout_s: float,
        rejected: Callable[[str], None],
    ) -> None:
        """max_bytes: of all of them together; a single one always fits. timeout_s: a body that
        takes longer is given up. rejected: the observer's, told "uploads"."""
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s
        self.rejected = rejected
        self.incomplete = 0
        """Bytes of the messages that gRPC assembles, which it does before it hands out any."""
        self.unpacking = asyncio.Lock()
        """Held while a message is unpacked: one at a time."""
        self._max_count = max_count
        self._count = 0
        self._bytes = 0

    @property
    def held(self) -> tuple[int, int]:
        """Counts bodies being read, and their bytes so far."""
        return self._count, self._bytes

    @property
    def full(self) -> bool:
        """Says whether there is no room for a byte more."""
        return self._bytes + self.incomplete >= self.max_bytes

    @contextmanager
    def begin(self) -> Iterator[Received]:
        """Holds the room of one body for a `with` block, and counts what it is told of.

        Raises: Overloaded, and nothing has been read.
        """
        if self._count >= self._max_count or (self._count and self.full):
            raise self._refused()
        self._count += 1
        own_bytes = 0

        def received(n_bytes: int) -> None:
            nonlocal own_bytes
            held = self._bytes + self.incomplete
            if self._count > 1 and held + n_bytes > self.max_bytes:
                raise self._refused()
            self._bytes += n_bytes
            own_bytes += n_bytes

        try:
            yield received
        finally:
            self._count -= 1
            self._bytes -= own_bytes

    async def in_time(self, reading: Coroutine[Any, Any, T]) -> T:
        """Raises: UploadTooSlow, and what `reading` raises."""
        try:
            async with asyncio.timeout(self.timeout_s) as scope:
                return await reading
        except TimeoutError:
            if not scope.expired():  # `reading` raised it
                raise
            raise UploadTooSlow(self.timeout_s) from None

    def _refused(self) -> Overloaded:
        self.rejected("uploads")
        return Overloaded(RETRY_UPLOAD_S)


async def chunks(receive: Receive, received: Received) -> AsyncIterator[bytes]:
    """Reads a request's body from ASGI, and counts it.

    Raises: Cancelled when the caller leaves, Overloaded.
    """
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled()
        chunk = message.get("body", b"")
        received(len(chunk))
        yield chunk
        more = message.get("more_body", False)


async def read_raw(
    stream: AsyncIterator[bytes], max_bytes: int, content_length: str | None = None
) -> bytes:
    """Reads the whole body. content_length: the header. Raises: ImageTooLarge."""
    check_announced(content_length, max_bytes, max_bytes)
    chunks: list[bytes] = []
    received = 0
    async for chunk in stream:
        received += len(chunk)
        if received > max_bytes:
            raise too_large(max_bytes)
        chunks.append(chunk)
    return await joined(chunks)


async def joined(chunks: Sequence[bytes]) -> bytes:
    """Joins the parts of a body. Copying 32 MiB takes 15 ms, in which the event loop goes on."""
    if sum(map(len, chunks)) <= INLINE_BYTES:
        return b"".join(chunks)
    return await asyncio.to_thread(b"".join, chunks)


def check_announced(content_length: str | None, limit: int, max_bytes: int) -> None:
    """Refuses before the upload what is announced as larger than `limit`: a claim is no proof of
    being small enough, but enough for that. max_bytes: of an image. Raises: ImageTooLarge."""
    if content_length and content_length.isdigit() and int(content_length[:18]) > limit:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> ImageTooLarge:
    """Makes the error of more bytes than that."""
    return ImageTooLarge(
        f"the upload is larger than {max_bytes} bytes: send a smaller or more compressed image"
    )
