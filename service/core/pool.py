"""A bounded pool of threads for pixel work (decode, render), off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.core.types import Clock
from service.errors import DeadlineExceeded, ShuttingDown

T = TypeVar("T")
_LATE = "the deadline passed before the answer was ready: allow more time or send less"


class Pool:
    """Pillow and numpy release the interpreter's lock for the long parts, so threads suffice."""

    def __init__(self, workers: int, clock: Clock) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="pixels")
        self._clock = clock
        self._closed = False

    async def run(self, work: Callable[[], T], deadline: float | None) -> T:
        """deadline: a moment of `clock`, or None. Work not begun by then never begins.

        Raises: DeadlineExceeded, ShuttingDown, and whatever `work` raises.
        """
        if self._closed:
            raise ShuttingDown()
        allowed_s = None if deadline is None else deadline - self._clock()
        if allowed_s is not None and allowed_s <= 0:
            raise DeadlineExceeded(_LATE)
        try:
            async with asyncio.timeout(allowed_s) as scope:
                return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except TimeoutError:
            if not scope.expired():  # `work` raised it
                raise
            raise DeadlineExceeded(_LATE) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise ShuttingDown() from None  # `close` dropped the work; nobody left
            raise

    def close(self) -> None:
        """Drops work not begun, which raises ShuttingDown where it is awaited."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)
