"""The one thread that calls one instance of a network.

Not a `ThreadPoolExecutor`: its future, with a condition and callbacks, costs more for each batch
than packing a label map does, and the thread itself knows best what it does next.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from service.core.engines.cores import yield_to_event_loop

B = TypeVar("B")


class DeviceThread(Generic[B]):
    """Takes a batch at a time, each by one call of `step`."""

    def __init__(self, name: str, step: Callable[[B], B | None], *, nice: int = 0) -> None:
        """step: runs a batch, raises nothing, and returns the one to be run next, if there is one.

        nice: see `cores.yield_to_event_loop`; 0: the thread does not stand back.
        """
        self._batches: SimpleQueue[B | None] = SimpleQueue()
        # A daemon, so that one that nobody stopped does not keep the process; see `_end`.
        self._thread = threading.Thread(
            target=_work, args=[self._batches, step, nice], name=name, daemon=True
        )
        self._thread.start()
        _all.add(self)

    def put(self, batch: B) -> None:
        """To be run after what was put before. From any thread."""
        self._batches.put(batch)

    def stop(self) -> None:
        """Returns at once: the thread ends after what was put before. May be called again."""
        self._batches.put(None)

    def join(self) -> None:
        """After `stop`: returns when the thread has ended."""
        self._thread.join()


def _work(batches: SimpleQueue[Any], step: Callable[[Any], Any], nice: int) -> None:
    if nice:
        yield_to_event_loop(nice)
    while (batch := batches.get()) is not None:
        while batch is not None:
            batch = step(batch)


_all: WeakSet[DeviceThread[Any]] = WeakSet()


@atexit.register
def _end() -> None:
    """The interpreter must not end under a thread that is inside a runtime: it would return into
    nothing."""
    threads = list(_all)
    for thread in threads:
        thread.stop()
    for thread in threads:
        thread.join()
