"""Works through a source with a bounded number of items in flight.

The source is read no further than the window: it may be endless, or a video's frames.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from fcn_client.request import check_in_flight
from fcn_client.tasks import Future, Pool, Source, each, wait_first

S = TypeVar("S")
T = TypeVar("T")

# Beyond those in flight, this many more may be finished and not yet taken, or wait their turn.
_SPARE = 2


async def in_window(
    work: Callable[[int, S], Awaitable[T]], source: Source[S], in_flight: int, ordered: bool
) -> AsyncGenerator[T, None]:
    """Yields `work(index, item)` for each item, in the source's order or as they finish.

    When the caller stops early, what has not begun is dropped, and nothing goes on after that.
    """
    check_in_flight(in_flight)
    waiting: dict[Future[Any], None] = {}  # a set that keeps the order
    index = 0
    async with Pool(in_flight) as pool:
        async for item in each(source):
            waiting[pool.submit(work, index, item)] = None
            index += 1
            while len(waiting) >= _SPARE * in_flight:
                yield await _next(waiting, ordered)
        while waiting:
            yield await _next(waiting, ordered)


async def _next(waiting: dict[Future[Any], None], ordered: bool) -> Any:
    first = next(iter(waiting))
    done = await wait_first([first] if ordered else list(waiting))
    first = next(future for future in waiting if future in done)
    del waiting[first]
    return first.result()
