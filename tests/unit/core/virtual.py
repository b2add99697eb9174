"""Time that passes only when nothing is left to do: hours of load in milliseconds, always alike."""

from __future__ import annotations

import asyncio
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from service.core.batching.queue import BatchQueue
from service.core.batching.threads import run as run_batch
from service.core.types import Float32Array, Instance, UInt8Array
from tests.unit.core.fakes import POISON

T = TypeVar("T")


class _Sleepless(selectors.DefaultSelector):
    """Does not wait: what the loop would have slept is added to its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everybody waits for ever")
        if timeout > 0:
            self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._sleepless = _Sleepless()
        super().__init__(self._sleepless)

    def time(self) -> float:
        return self._sleepless.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs like asyncio.run, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class Machine(Instance):
    """Runs batches in virtual time: a run ends `seconds(batch)` after it began, and is noted.

    The label map is the red channel, and a batch with a POISON image fails.
    """

    def __init__(self, seconds: Callable[[UInt8Array], float]) -> None:
        self._seconds = seconds
        self.runs: list[tuple[float, str, UInt8Array]] = []
        """When each began, on which instance, with what."""
        self.busy: dict[str, int] = {}
        self.most_busy = 0

    def run(self, batch: UInt8Array) -> UInt8Array:
        if (batch[:, 0, 0, 0] == POISON).any():
            raise RuntimeError("secret of the device")
        return batch[..., 0]

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        return self.run(batch), batch.transpose(0, 3, 1, 2).astype(np.float32)

    def begin(self, name: str, images: list[UInt8Array]) -> float:
        """Returns the seconds that the run will take."""
        batch = np.stack(images)
        self.runs.append((asyncio.get_running_loop().time(), name, batch))
        self.busy[name] = self.busy.get(name, 0) + 1
        self.most_busy = max(self.most_busy, sum(self.busy.values()))
        if self.busy[name] > 1:
            raise RuntimeError(f"{name} was called twice at once")
        return self._seconds(batch)


class VirtualQueue(BatchQueue):
    """A queue whose device threads are callbacks of the event loop.

    The last of them is the instance that takes the full device, if there is one.
    """

    def __init__(
        self, machine: Machine, *, instances: int, full_device: bool, **options: Any
    ) -> None:
        super().__init__(instances=instances, full_device=full_device, **options)
        self._machine = machine
        self.idle = [str(n) for n in range(instances)]
        self.idle += ["full"] * full_device
        self._woken: deque[bool] = deque()

    def put(self, *args: Any, **options: Any) -> None:
        super().put(*args, **options)
        self._wake_up()

    def _notify(self, *, full_device: bool) -> None:
        self._woken.append(full_device)

    def _wake_up(self) -> None:
        """Lets those that were notified look for work, in no time."""
        while self._woken:
            full_device = self._woken.popleft()
            names = [name for name in self.idle if (name == "full") is full_device]
            if names:
                self.idle.remove(names[-1])
                self._serve_next(names[-1])

    def _serve_next(self, name: str) -> None:
        with self._lock:
            batch = None if self._error else self._take(name == "full")
        if batch is None:
            self.idle.append(name)
            return
        seconds = self._machine.begin(name, [request.image for request in batch.requests])

        def end() -> None:
            self._machine.busy[name] -= 1
            try:
                results = run_batch(self._machine, batch, self._clock)
            except RuntimeError as error:
                self.retry_singly(batch, error)
            else:
                results = [replace(result, infer_s=seconds) for result in results]
                self.finish(batch, results, self._clock() - batch.started_s)
            self._serve_next(name)
            self._wake_up()

        asyncio.get_running_loop().call_later(seconds, end)
