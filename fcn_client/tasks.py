"""Offers what the client needs of asyncio. `fcn_client.threads` has the same names for threads.

`fcn_client/aio/` is written with these alone, and `fcn_client/sync/` is made from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
)
from typing import Any, Generic, Self, TypeAlias, TypeVar

T = TypeVar("T")

Source: TypeAlias = Iterable[T] | AsyncIterable[T]
Future = asyncio.Task
Semaphore = asyncio.Semaphore
sleep = asyncio.sleep
in_thread = asyncio.to_thread
"""Calls a function that reads a file or codes an image where it holds up nobody."""


async def each(source: Source[T]) -> AsyncIterator[T]:
    """Yields the items of either kind of source."""
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item


class Queue(Generic[T]):
    """Hands on what comes from the event loop. Reading may be bounded in time."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[T] = asyncio.Queue()

    def put(self, item: T) -> None:
        self._queue.put_nowait(item)

    async def get(self, timeout_s: float | None = None) -> T:
        """Waits for the next item. Raises: TimeoutError."""
        return await asyncio.wait_for(self._queue.get(), timeout_s)


class Background:
    """Runs something beside its maker until it ends or is stopped."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        self._task = asyncio.create_task(work(), name=name)

    def cancel(self) -> None:
        self._task.cancel()

    async def join(self) -> None:
        await asyncio.gather(self._task, return_exceptions=True)


class Pool:
    """Works on at most `size` items at a time. At its end nothing is left running."""

    def __init__(self, size: int) -> None:
        self._turn = asyncio.Semaphore(size)
        self._tasks: set[asyncio.Task[Any]] = set()

    def submit(
        self, work: Callable[[int, T], Awaitable[Any]], index: int, item: T
    ) -> asyncio.Task[Any]:
        async def take_turn() -> Any:
            async with self._turn:
                return await work(index, item)

        task = asyncio.create_task(take_turn())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (left := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


async def wait_first(futures: Collection[asyncio.Task[Any]]) -> set[asyncio.Task[Any]]:
    """Waits until one of them is done, and returns those that are."""
    done, _ = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    return done
