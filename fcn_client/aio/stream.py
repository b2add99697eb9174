"""Drives a `Flow`: reads the source, sends what is due, hands out what is settled.

Whatever happens (an image read, an answer, the end of a call) is put into one queue as something
to do, and one thread or task, the caller's, does it: a flow needs no lock.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any, Generic, TypeVar

from fcn_client.errors import FcnError
from fcn_client.flow import Flow
from fcn_client.images import file_bytes
from fcn_client.request import check_in_flight
from fcn_client.tasks import Background, Queue, Semaphore, Source, each, in_thread
from fcn_client.types import ImageLike, OpenStream, RawReply, StreamResult

I = TypeVar("I", bound=ImageLike)  # noqa: E741

Open = Callable[
    [str, int, Callable[[str, RawReply | FcnError], None], Callable[[FcnError], None]],
    Awaitable[OpenStream],
]
"""`Transport.stream`: the request id, the window, and whom to tell of answers and of the end."""


class _Driver(Generic[I]):
    """Applies to the flow what happens. `tell` puts something to do into the queue."""

    def __init__(
        self, open_: Open, flow: Flow[I], window: int, tell: Callable[[Callable[[], None]], None]
    ) -> None:
        self._open, self._flow, self._window, self._tell = open_, flow, window, tell
        self._stream: OpenStream | None = None
        self._opened = 0
        self.reading = True

    def read(self, index: int, image: I, body: bytes | FcnError) -> None:
        self._tell(partial(self._flow.take, index, image, body))

    def all_read(self, error: BaseException | None) -> None:
        self._tell(partial(self._end_of_source, error))

    @property
    def over(self) -> bool:
        return not self.reading and self._flow.idle

    async def send(self) -> None:
        """Sends all that is due, over a new call where there is none."""
        for id, call in self._flow.due():
            if self._stream is None:
                self._opened += 1
                self._stream = await self._open(
                    self._flow.request_id,
                    self._window,
                    lambda id, end: self._tell(partial(self._flow.answered, id, end)),
                    # Bound to its number: a call that was left must not end the next one.
                    lambda error, n=self._opened: self._tell(partial(self._ended, n, error)),  # type: ignore[misc]
                )
            self._stream.send(id, call)

    def leave_if_overdue(self) -> None:
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


async def drive(
    open_: Open, images: Source[I], flow: Flow[I], window: int
) -> AsyncGenerator[StreamResult[I], None]:
    """Yields each image's result once it is settled. Raises: FcnError, and what the source does.

    The source is read at the same time: one that waits for its next image, as a camera does, holds
    up no answer.
    """
    check_in_flight(window)
    events: Queue[Callable[[], None]] = Queue()
    driver = _Driver(open_, flow, window, events.put)
    room, left = Semaphore(window), False

    async def read() -> None:
        index = 0
        try:
            source = aiter(each(images))
            while await room.acquire() and not left:
                try:
                    image: Any = await anext(source)
                except StopAsyncIteration:
                    break
                try:
                    driver.read(index, image, await in_thread(file_bytes, image))
                except FcnError as error:
                    driver.read(index, image, error)
                index += 1
            driver.all_read(None)
        except BaseException as error:  # the caller's own: it is raised where the caller is
            driver.all_read(error)

    reading = Background(read, "fcn-client-source")
    try:
        while True:
            driver.leave_if_overdue()
            await driver.send()
            for result in flow.pop_ready():
                room.release()
                yield result
            if driver.over:
                return
            try:
                happened = await events.get(flow.wait_s())
            except TimeoutError:
                continue
            happened()
    finally:
        left = True
        room.release()
        reading.cancel()
        driver.close()
        await reading.join()
