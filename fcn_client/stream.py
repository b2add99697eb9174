"""The two drivers of a `Flow`: with threads and with asyncio.

Whatever happens (a picture read, an answer, the end of a call) is put into one queue as something
to do, and one thread or task, the caller's, does it: a flow needs no lock.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from fcn_client.errors import FcnError
from fcn_client.flow import Flow
from fcn_client.picture import file_bytes
from fcn_client.types import Call, ImageLike, RawReply, Settled
from fcn_client.window import check_in_flight, each

I = TypeVar("I", bound=ImageLike)  # noqa: E741


class OpenStream(Protocol):
    """One call, as the transports have it."""

    def send(self, id: str, call: Call) -> None: ...

    def close(self) -> None: ...


Open = Callable[
    [str, int, Callable[[str, RawReply | FcnError], None], Callable[[FcnError], None]], OpenStream
]
"""`Transport.stream`: the request id, the window, and whom to tell of answers and of the end."""


class _Driver(Generic[I]):
    """What happens, applied to the flow. `tell`: puts a thing to do into the queue."""

    def __init__(
        self, open_: Open, flow: Flow[I], window: int, tell: Callable[[Callable[[], None]], None]
    ) -> None:
        self._open, self._flow, self._window, self._tell = open_, flow, window, tell
        self._stream: OpenStream | None = None
        self._opened = 0
        self.reading = True

    def read(self, index: int, image: I, picture: bytes | FcnError) -> None:
        self._tell(partial(self._flow.take, index, image, picture))

    def all_read(self, error: BaseException | None) -> None:
        self._tell(partial(self._end_of_source, error))

    @property
    def over(self) -> bool:
        return not self.reading and self._flow.idle

    def send(self) -> None:
        """All that is due, over a new call where there is none."""
        for id, call in self._flow.due():
            if self._stream is None:
                self._opened += 1
                self._stream = self._open(
                    self._flow.request_id,
                    self._window,
                    lambda id, end: self._tell(partial(self._flow.answered, id, end)),
                    # Bound to its number: a call that was left must not end the next one.
                    lambda error, n=self._opened: self._tell(partial(self._ended, n, error)),  # type: ignore[misc]
                )
            self._stream.send(id, call)

    def look_at_the_clock(self) -> None:
        if self._flow.overdue():
            self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _ended(self, number: int, error: FcnError) -> None:
        if number == self._opened and self._stream is not None:
            self._stream = None
            self._flow.broken(error)

    def _end_of_source(self, error: BaseException | None) -> None:
        self.reading = False
        if error is not None:
            raise error


def on_threads(
    open_: Open, images: Iterable[I], flow: Flow[I], window: int
) -> Generator[Settled[I], None, None]:
    """The source is read, and its pictures encoded, on a thread of its own: one that waits for its
    next picture, as a camera does, holds up no answer. Raises: FcnError, and what the source does.
    """
    check_in_flight(window)
    events: SimpleQueue[Callable[[], None]] = SimpleQueue()
    driver = _Driver(open_, flow, window, events.put)
    room, left = threading.Semaphore(window), threading.Event()

    def read() -> None:
        try:
            source = enumerate(images)
            while room.acquire() and not left.is_set():
                try:
                    index, image = next(source)
                except StopIteration:
                    break
                try:
                    driver.read(index, image, file_bytes(image))
                except FcnError as error:
                    driver.read(index, image, error)
            driver.all_read(None)
        except BaseException as error:  # the caller's own: it is raised where the caller is
            driver.all_read(error)

    threading.Thread(target=read, name="fcn-client-source", daemon=True).start()
    try:
        while True:
            driver.look_at_the_clock()
            driver.send()
            for settled in flow.handed_out():
                room.release()
                yield settled
            if driver.over:
                return
            with suppress(Empty):
                events.get(timeout=flow.wait_s())()
    finally:
        left.set()
        room.release()
        driver.close()


async def in_tasks(
    open_: Open, images: Iterable[I] | AsyncIterable[I], flow: Flow[I], window: int
) -> AsyncGenerator[Settled[I], None]:
    """As `on_threads`, in tasks of this event loop; pictures are encoded on threads."""
    check_in_flight(window)
    events: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
    driver = _Driver(open_, flow, window, events.put_nowait)
    room = asyncio.Semaphore(window)

    async def read() -> None:
        index = 0
        try:
            source = aiter(each(images))
            while await room.acquire():
                try:
                    image: Any = await anext(source)
                except StopAsyncIteration:
                    break
                try:
                    driver.read(index, image, await asyncio.to_thread(file_bytes, image))
                except FcnError as error:
                    driver.read(index, image, error)
                index += 1
            driver.all_read(None)
        except Exception as error:
            driver.all_read(error)

    reading = asyncio.create_task(read())
    try:
        while True:
            driver.look_at_the_clock()
            driver.send()
            for settled in flow.handed_out():
                room.release()
                yield settled
            if driver.over:
                return
            with suppress(TimeoutError):
                (await asyncio.wait_for(events.get(), flow.wait_s()))()
    finally:
        reading.cancel()
        driver.close()
        await asyncio.gather(reading, return_exceptions=True)
