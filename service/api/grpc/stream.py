"""Paces gRPC's `SegmentStream`: how far to read ahead, and in which order to answer.

Nothing here knows images: what an item's answer is, is up to the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from service.api.call import MAX_DEADLINE_MS, is_valid_id
from service.api.grpc.handlers import Read, Write
from service.api.stubs import segmentation_pb2 as pb
from service.errors import InvalidParameter, ShuttingDown, quoted

Answer = Callable[
    [pb.SegmentStreamRequest, InvalidParameter | None],
    Coroutine[Any, Any, pb.SegmentStreamResponse],
]
"""Never raises, but when cancelled. Told what is wrong with the message around its image."""


class Stream:
    """Reads, answers and writes one call's items; run once."""

    def __init__(
        self,
        read: Read[pb.SegmentStreamRequest],
        write: Write,
        answer: Answer,
        *,
        window: int,
        closing: asyncio.Event,
    ) -> None:
        """read: has at most one call at a time. window: items read and not answered yet. closing:
        set when the server shuts down."""
        self._read = read
        self._write = write
        self._answer = answer
        self._window = window
        self._closing = closing
        self._ordered = False
        self._outstanding = 0
        self._answered = asyncio.Event()
        self._ids: set[str] = set()
        self._last: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Goes on until the caller has closed and has every answer.

        Raises: ShuttingDown when the server closes first, after the answers still owed;
        InvalidParameter when a message is none. Cancelling it cancels all items.
        """
        whole = False
        try:
            async with asyncio.TaskGroup() as group:
                whole = await self._receive(group)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        except asyncio.CancelledError:
            # Whoever has closed their side and read the last answer need not wait for the status.
            if not whole or self._outstanding:
                raise
        if not whole:
            raise ShuttingDown(
                "this server is shutting down: send the images without an answer to another"
            )

    async def _receive(self, group: asyncio.TaskGroup) -> bool:
        """Reads items. Returns True when the caller has closed, False when the server did."""
        closing = asyncio.ensure_future(self._closing.wait())
        reading: asyncio.Future[Any] | None = None
        try:
            first = True
            while True:
                await self._fewer_outstanding_than(self._window)
                if self._closing.is_set():
                    return False
                reading = asyncio.ensure_future(self._read())
                await asyncio.wait((reading, closing), return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    return False
                found = reading.result()
                if found is None:
                    return True
                self._take(found[0], first, group)
                first = False
        finally:
            # Cancelling the read is safe: nobody reads on.
            for future in (closing, reading):
                if future is not None:
                    future.cancel()

    def _take(
        self, message: pb.SegmentStreamRequest, first: bool, group: asyncio.TaskGroup
    ) -> None:
        if first and message.HasField("options"):
            self._ordered = message.options.ordered
            self._window = min(message.options.window or self._window, self._window)
            if not message.HasField("request"):
                return
        self._outstanding += 1
        fault = self._fault(message, first)
        if fault is None:
            self._ids.add(message.id)
        elif not is_valid_id(message.id):
            message.id = ""
        before = self._last if self._ordered else None
        self._last = group.create_task(self._respond(message, fault, before))

    def _fault(self, message: pb.SegmentStreamRequest, first: bool) -> InvalidParameter | None:
        """Finds what is wrong with the message around its image."""
        if not is_valid_id(message.id):
            return InvalidParameter(
                f"the id is {quoted(message.id)}: use 1 to 128 of A-Z a-z 0-9 . _ : -"
            )
        if message.id in self._ids:
            return InvalidParameter(
                f"the id {message.id!r} is in use: choose another, or wait for its answer"
            )
        if not message.HasField("request"):
            return InvalidParameter("the message has no request: put the image into one")
        if not first and message.HasField("options"):
            return InvalidParameter("only the first message of a stream may have options")
        if message.HasField("deadline_ms") and not 1 <= message.deadline_ms <= MAX_DEADLINE_MS:
            return InvalidParameter(
                f"deadline_ms={message.deadline_ms}: use 1 to {MAX_DEADLINE_MS}, or leave it out"
            )
        return None

    async def _respond(
        self,
        message: pb.SegmentStreamRequest,
        fault: InvalidParameter | None,
        before: asyncio.Task[None] | None,
    ) -> None:
        """Sends the answer, once it is there and `before` was sent."""
        answer = await self._answer(message, fault)
        # A message that was wrong has no id of its own.
        own_id = message.id if fault is None else None
        await self._write(answer, self._turn(own_id, before))
        self._outstanding -= 1
        self._answered.set()

    async def _turn(self, own_id: str | None, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        # Before it is sent: a caller may use the id again as soon as it has the answer.
        if own_id is not None:
            self._ids.discard(own_id)

    async def _fewer_outstanding_than(self, n: int) -> None:
        while self._outstanding >= n:
            self._answered.clear()
            await self._answered.wait()
