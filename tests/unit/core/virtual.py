"""Time that passes only when nothing is left to do: hours of load in milliseconds, always alike."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

from service.core.batching.lanes import Batch, Step
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
    """As asyncio.run, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


class Machine(Instance):
    """Devices in virtual time: a run ends `seconds(batch)` after it began, and is noted.

    The label map is the red channel, and a batch with a POISON image fails.
    """

    def __init__(self, seconds: Callable[[UInt8Array], float]) -> None:
        self._seconds = seconds
        self.runs: list[tuple[float, str, UInt8Array]] = []
        """When each began, on which thread, with what."""
        self.busy: dict[str, int] = {}
        self.most_busy = 0

    def run(self, batch: UInt8Array) -> UInt8Array:
        if (batch[:, 0, 0, 0] == POISON).any():
            raise RuntimeError("secret of the device")
        return batch[..., 0]

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        return self.run(batch), batch.transpose(0, 3, 1, 2).astype(np.float32)

    def thread(self, name: str, step: Step) -> _Thread:
        return _Thread(self, name, step)

    def begin(self, name: str, images: list[UInt8Array]) -> float:
        """Seconds that the run will take."""
        batch = np.stack(images)
        self.runs.append((asyncio.get_running_loop().time(), name, batch))
        self.busy[name] = self.busy.get(name, 0) + 1
        self.most_busy = max(self.most_busy, sum(self.busy.values()))
        if self.busy[name] > 1:
            raise RuntimeError(f"{name} was called twice at once")
        return self._seconds(batch)


class _Thread:
    """A `Worker` in virtual time: what a batch is made into is known when its time is over."""

    def __init__(self, machine: Machine, name: str, step: Step) -> None:
        self._machine = machine
        self._name = name
        self._step = step

    def put(self, batch: Batch) -> None:
        seconds = self._machine.begin(self._name, [item.image for item in batch.items])

        def end() -> None:
            self._machine.busy[self._name] -= 1
            if (following := self._step(batch)) is not None:
                self.put(following)

        asyncio.get_running_loop().call_later(seconds, end)

    def stop(self) -> None:
        pass

    def join(self) -> None:
        pass
