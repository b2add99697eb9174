"""Many pieces of work with a bounded number in flight, on threads or in tasks.

The source is read no further than the window: it may be endless, or a video's frames.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
)
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from fcn_client.errors import UnusableInput

S = TypeVar("S")
T = TypeVar("T")

# Beyond those in flight, this many more may be finished and not yet taken, or wait their turn.
_SPARE = 2


def on_threads(
    work: Callable[[int, S], T], source: Iterable[S], in_flight: int, ordered: bool
) -> Generator[T, None, None]:
    """`work(index, item)` for each item, in the source's order or as they finish.

    When the caller stops early, what has not begun is dropped and what has is waited for.
    """
    check_in_flight(in_flight)
    with ThreadPoolExecutor(in_flight, "fcn-client") as threads:
        waiting: dict[Future[T], None] = {}  # a set that keeps the order
        try:
            for index, item in enumerate(source):
                waiting[threads.submit(work, index, item)] = None
                while len(waiting) >= _SPARE * in_flight:
                    yield _next(waiting, ordered)
            while waiting:
                yield _next(waiting, ordered)
        finally:
            for future in waiting:
                future.cancel()


def _next(waiting: dict[Future[T], None], ordered: bool) -> T:
    first = next(iter(waiting))
    if not ordered:
        done = wait(waiting, return_when=FIRST_COMPLETED).done
        first = next(future for future in waiting if future in done)
    result = first.result()
    del waiting[first]
    return result


async def in_tasks(
    work: Callable[[int, S], Awaitable[T]],
    source: Iterable[S] | AsyncIterable[S],
    in_flight: int,
    ordered: bool,
) -> AsyncGenerator[T, None]:
    """As `on_threads`, in tasks of this event loop; they are cancelled when the caller stops."""
    check_in_flight(in_flight)
    turn = asyncio.Semaphore(in_flight)

    async def take_turn(index: int, item: S) -> T:
        async with turn:
            return await work(index, item)

    async def next_done() -> T:
        first = next(iter(waiting))
        if ordered:
            await asyncio.wait((first,))
        else:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            first = next(task for task in waiting if task in done)
        del waiting[first]
        return first.result()

    waiting: dict[asyncio.Task[T], None] = {}
    index = 0
    try:
        async for item in each(source):
            waiting[asyncio.create_task(take_turn(index, item))] = None
            index += 1
            while len(waiting) >= _SPARE * in_flight:
                yield await next_done()
        while waiting:
            yield await next_done()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def each(source: Iterable[S] | AsyncIterable[S]) -> AsyncIterator[S]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item


def check_in_flight(in_flight: int) -> None:
    """Raises: UnusableInput."""
    if in_flight < 1:
        raise UnusableInput(f"in_flight is {in_flight}: give 1 or more")
