"""Bounds the bodies being read, of all connections and transports: how many, large and slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from service.errors import Overloaded, UploadTooSlow

T = TypeVar("T")

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
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._rejected = rejected
        self._count = 0
        self._bytes = 0
        self.timeout_s = timeout_s

    @property
    def held(self) -> tuple[int, int]:
        """Bodies being read, and their bytes so far."""
        return self._count, self._bytes

    def begin(self) -> Upload:
        """Takes the room of one, for a `with` block.

        Raises: Overloaded, and nothing has been read.
        """
        if self._count >= self._max_count or (self._count and self._bytes >= self._max_bytes):
            raise self._refused()
        self._count += 1
        return Upload(self)

    def received(self, n_bytes: int) -> None:
        """Raises: Overloaded."""
        if self._count > 1 and self._bytes + n_bytes > self._max_bytes:
            raise self._refused()
        self._bytes += n_bytes

    def end(self, n_bytes: int) -> None:
        """Gives back the room of one body."""
        self._count -= 1
        self._bytes -= n_bytes

    def _refused(self) -> Overloaded:
        self._rejected("uploads")
        return Overloaded(RETRY_UPLOAD_S)


class Upload:
    """Holds the room of one body being read, until the end of its `with` block."""

    __slots__ = ("_bytes", "_uploads")

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._uploads.end(self._bytes)

    def received(self, n_bytes: int) -> None:
        """Raises: Overloaded."""
        self._uploads.received(n_bytes)
        self._bytes += n_bytes

    async def in_time(self, reading: Coroutine[Any, Any, T]) -> T:
        """Raises: UploadTooSlow, and what `reading` raises."""
        try:
            async with asyncio.timeout(self._uploads.timeout_s) as scope:
                return await reading
        except TimeoutError:
            if not scope.expired():  # `reading` raised it
                raise
            raise UploadTooSlow(self._uploads.timeout_s) from None
