"""Offers what the client needs of threads. `fcn_client.tasks` has the same names for asyncio."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Any, Generic, ParamSpec, Self, TypeAlias, TypeVar

__all__ = [
    "Background",
    "Future",
    "Pool",
    "Queue",
    "Semaphore",
    "Source",
    "each",
    "in_thread",
    "sleep",
    "wait_first",
]

T = TypeVar("T")
P = ParamSpec("P")

Source: TypeAlias = Iterable[T]
Semaphore = threading.Semaphore
sleep = time.sleep


def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls it: this is a thread."""
    return function(*args, **kwargs)


def each(source: Source[T]) -> Iterable[T]:
    return source


class Queue(Generic[T]):
    """Hands on what comes from any thread. Reading may be bounded in time."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[T] = SimpleQueue()

    def put(self, item: T) -> None:
        self._queue.put(item)

    def get(self, timeout_s: float | None = None) -> T:
        """Waits for the next item. Raises: TimeoutError."""
        try:
            return self._queue.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError from None


class Background:
    """Runs something beside its maker until it ends: a thread cannot be stopped, only told."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        threading.Thread(target=work, name=name, daemon=True).start()

    def cancel(self) -> None:
        pass

    def join(self) -> None:
        """Does not wait: a source that waits for its next image, as a camera, may never end."""


class Pool:
    """Works on at most `size` items at a time. At its end nothing is left running."""

    def __init__(self, size: int) -> None:
        self._threads = ThreadPoolExecutor(size, "fcn-client")

    def submit(self, work: Callable[[int, T], Any], index: int, item: T) -> Future[Any]:
        return self._threads.submit(work, index, item)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)


def wait_first(futures: Collection[Future[Any]]) -> set[Future[Any]]:
    """Waits until one of them is done, and returns those that are."""
    return wait(futures, return_when=FIRST_COMPLETED).done
