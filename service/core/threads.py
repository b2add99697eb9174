"""Runs pixel work on threads off the event loop, and settles futures from them.

The pool is no `ThreadPoolExecutor` with `run_in_executor`: its two futures for each piece of work,
chained through callbacks, and `asyncio.timeout` around them cost more than packing a label map does
(bench/LOG.md, "the request path").
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from service.core.types import Clock
from service.errors import DeadlineExceeded, ShuttingDown

T = TypeVar("T")

POOL_NICE: Final = 2
DEVICE_NICE: Final = 5
"""How much the threads of the pool and of the CPU's instances stand back. With every core busy, the
slowest refusals took 11 ms without it and 7 ms with it, at the same throughput (bench/LOG.md)."""

LATE: Final = "the deadline passed before the answer was ready: allow more time or send less"


def start_thread(name: str, work: Callable[[], None], *, nice: int = 0) -> threading.Thread:
    """Starts a daemon thread: work that hangs must not keep a stopped server alive.

    nice: see `yield_to_event_loop`; 0: the thread does not stand back.
    """

    def run() -> None:
        if nice:
            yield_to_event_loop(nice)
        work()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def yield_to_event_loop(nice: int) -> None:
    """Lowers the calling thread's priority: where cores are short the event loop goes first, so
    that whoever is to be refused, or is answered, need not wait for the end of a time slice.

    nice: added to what the thread has. On Linux a thread has its own; elsewhere nothing happens.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):  # forbidden in some sandboxes
            os.setpriority(
                os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + nice)
            )


def settle(future: asyncio.Future[Any], outcome: object) -> None:
    """Answers whoever awaits `future`, from any thread; who has left misses nothing.

    outcome: the result, or the exception to raise.
    """
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        future.get_loop().call_soon_threadsafe(settle_now, future, outcome)


def settle_now(future: asyncio.Future[Any], outcome: object) -> None:
    """Does what `settle` does, on the event loop."""
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


async def result_by(future: asyncio.Future[T], deadline: float | None, clock: Clock) -> T:
    """Waits for a future, which is done afterwards, whatever happens.

    deadline: a moment of `clock`, or None. Raises: DeadlineExceeded, and what the future raises.
    """
    if deadline is None:
        return await future
    left_s = deadline - clock()
    if left_s <= 0:
        future.cancel()
        raise DeadlineExceeded(LATE)
    timer = future.get_loop().call_later(left_s, settle_now, future, DeadlineExceeded(LATE))
    try:
        return await future
    finally:
        timer.cancel()


_Task = tuple[Callable[[], Any], asyncio.Future[Any], bool]
"""Work, its future, and whether what the work returns is that one's result."""


class Pool:
    """Runs pieces of work on a few threads: Pillow and numpy release the interpreter's lock for the
    long parts."""

    def __init__(self, workers: int, clock: Clock) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._clock = clock
        self._closed = False
        self._workers = workers
        for n in range(workers):
            start_thread(f"pixels-{n}", self._work, nice=POOL_NICE)

    async def run(self, work: Callable[[], T], deadline: float | None) -> T:
        """Returns what `work` returns. Work not begun by the deadline never begins.

        deadline: a moment of `clock`, or None. Raises: DeadlineExceeded, ShuttingDown, and whatever
        `work` raises.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put((work, future, True))
        return await result_by(future, deadline, self._clock)

    def submit(self, work: Callable[[], None], future: asyncio.Future[Any]) -> None:
        """Runs `work`, which hands `future` on to be settled elsewhere.

        Only what `work` raises, and ShuttingDown, is its exception. Work of which the future is
        done by then never begins.
        """
        self._put((work, future, False))

    def close(self) -> None:
        """Ends the threads. Work not begun raises ShuttingDown where it is awaited."""
        self._closed = True
        with contextlib.suppress(Empty):
            while True:
                if (task := self._tasks.get_nowait()) is not None:
                    settle_now(task[1], ShuttingDown())
        for _ in range(self._workers):
            self._tasks.put(None)

    def _put(self, task: _Task) -> None:
        if self._closed:
            settle_now(task[1], ShuttingDown())
        else:
            self._tasks.put(task)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            work, future, settles = task
            outcome: object = None
            if not future.done():  # else nobody waits for it any more
                try:
                    outcome = work()
                except BaseException as error:
                    outcome = error
                if settles or isinstance(outcome, BaseException):
                    settle(future, outcome)
            del task, work, future, outcome  # or the last image would live until the next comes
