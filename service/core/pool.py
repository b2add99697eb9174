"""A bounded pool of threads for pixel work (decode, render), off the event loop.

Not `ThreadPoolExecutor` with `run_in_executor`: its two futures for each piece of work, chained
through callbacks, and `asyncio.timeout` around them cost more than packing a label map does
(bench/LOG.md, "the request path").
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from service.core.engines.cores import PIXELS_NICE, yield_to_event_loop
from service.core.types import Clock
from service.errors import DeadlineExceeded, ShuttingDown

T = TypeVar("T")
_LATE = "the deadline passed before the answer was ready: allow more time or send less"


@dataclass(eq=False, slots=True)
class _Task:
    work: Callable[[], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    settles: bool
    """Whether what `work` returns is the future's result."""


class Pool:
    """Pillow and numpy release the interpreter's lock for the long parts, so threads suffice."""

    def __init__(self, workers: int, clock: Clock) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._clock = clock
        self._closed = False
        self._workers = workers
        # Daemons: work that hangs in a decoder must not keep a stopped server alive.
        for n in range(workers):
            name = f"pixels-{n}"
            threading.Thread(target=_work, args=[self._tasks], name=name, daemon=True).start()

    async def run(self, work: Callable[[], T], deadline: float | None) -> T:
        """deadline: a moment of `clock`, or None. Work not begun by then never begins.

        Raises: DeadlineExceeded, ShuttingDown, and whatever `work` raises.
        """
        if self._closed:
            raise ShuttingDown()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        timer = None
        if deadline is not None:
            allowed_s = deadline - self._clock()
            if allowed_s <= 0:
                raise DeadlineExceeded(_LATE)
            timer = loop.call_later(allowed_s, _fail, future, DeadlineExceeded(_LATE))
        self._tasks.put(_Task(work, future, loop, settles=True))
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()

    def give(self, work: Callable[[], None], future: asyncio.Future[Any]) -> None:
        """As `run`, for a future that `work` hands on to be settled elsewhere.

        Only what `work` raises, and ShuttingDown, is its exception. Work of which the future is
        done by then never begins.
        """
        if self._closed:
            _fail(future, ShuttingDown())
            return
        self._tasks.put(_Task(work, future, future.get_loop(), settles=False))

    def close(self) -> None:
        """On the event loop. Work not begun raises ShuttingDown where it is awaited."""
        self._closed = True
        with contextlib.suppress(Empty):
            while True:
                if (task := self._tasks.get_nowait()) is not None:
                    _fail(task.future, ShuttingDown())
        for _ in range(self._workers):
            self._tasks.put(None)


def _work(tasks: SimpleQueue[_Task | None]) -> None:
    """A thread of the pool."""
    yield_to_event_loop(PIXELS_NICE)
    while (task := tasks.get()) is not None:
        if task.future.done():  # nobody waits for it any more
            continue
        settle: Callable[[asyncio.Future[Any], Any], None] = _succeed
        try:
            answer = task.work()
            if not task.settles:
                del task
                continue
        except BaseException as error:
            settle, answer = _fail, error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            task.loop.call_soon_threadsafe(settle, task.future, answer)
        del task, answer  # or the last picture would live until the next one comes


def _succeed(future: asyncio.Future[Any], answer: object) -> None:
    if not future.done():
        future.set_result(answer)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
