"""A device and an observer whose every move a test can see."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable

import numpy as np

from service.core.types import Float32Array, Instance, Observer, UInt8Array

POISON = 13
"""A batch with an image whose first value is this makes the device fail."""
WARM_UP_SIZE = (256, 256)
"""A device says nothing of these: the loader warms it up with one."""
WAIT_S = 60.0
"""When a test that hangs gives up; no passing test waits for it."""


class Function(Instance):
    """Makes an instance of one function, or of two."""

    def __init__(
        self,
        run: Callable[[UInt8Array], UInt8Array],
        run_with_logits: Callable[[UInt8Array], tuple[UInt8Array, Float32Array]] | None = None,
        *,
        full_device: bool = False,
    ) -> None:
        self._run = run
        self._run_with_logits = run_with_logits
        self.full_device = full_device

    def run(self, batch: UInt8Array) -> UInt8Array:
        return self._run(batch)

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        if self._run_with_logits is None:
            raise RuntimeError("this network has no logits")
        return self._run_with_logits(batch)


class Device(Instance):
    """An instance whose label map is the red channel.

    Between `hold` and `release` it finishes a batch for every `step` only.
    """

    def __init__(self) -> None:
        self.batches: list[UInt8Array] = []
        self.threads: set[int] = set()
        self._permits = math.inf
        self._changed = threading.Condition()
        self._entered = threading.Semaphore(0)

    def run(self, batch: UInt8Array) -> UInt8Array:
        if batch.shape[1:3] == WARM_UP_SIZE:
            return batch[..., 0]
        self.batches.append(batch.copy())
        self.threads.add(threading.get_ident())
        self._entered.release()
        with self._changed:
            if not self._changed.wait_for(lambda: self._permits > 0, WAIT_S):
                raise TimeoutError("the test never released the device")
            self._permits -= 1
        if (batch[:, 0, 0, 0] == POISON).any():
            raise RuntimeError("secret of the device")
        return batch[..., 0]

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        return self.run(batch), batch.transpose(0, 3, 1, 2).astype(np.float32)

    def hold(self) -> None:
        self._set_permits(0)

    def step(self) -> None:
        self._set_permits(self._permits + 1)

    def release(self) -> None:
        self._set_permits(math.inf)

    def _set_permits(self, permits: float) -> None:
        with self._changed:
            self._permits = permits
            self._changed.notify_all()

    async def entered(self) -> None:
        """Returns once the device has begun a batch not waited for before."""
        if not await asyncio.to_thread(self._entered.acquire, timeout=WAIT_S):
            raise TimeoutError("the device was never given that batch")

    @property
    def values(self) -> list[list[int]]:
        """The first value of each image of each batch."""
        return [[int(v) for v in batch[:, 0, 0, 0]] for batch in self.batches]


class Recorder(Observer):
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.batches: list[int] = []
        self.depths: list[int] = []
        self.inflights: list[int] = []
        self.reasons: list[str] = []
        self.pixels: list[int] = []
        self.stuck_runs: list[tuple[str, str]] = []
        self._depth_changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None  # where somebody waits for a depth

    def stage(self, model: str, stage: str, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"{stage} took {seconds} s")
        self.stages.append((model, stage))

    def batch(self, model: str, size: int, closed: str) -> None:
        self.batches.append(size)

    def queue_depth(self, model: str, version: str, n: int) -> None:
        self.depths.append(n)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._depth_changed.set)

    async def until_depth(self, n: int) -> None:
        """Returns once `n` images wait."""
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(WAIT_S):
                while self.depths[-1:] != [n]:
                    self._depth_changed.clear()
                    await self._depth_changed.wait()
        finally:
            self._loop = None

    def inflight(self, n: int) -> None:
        self.inflights.append(n)

    def rejected(self, reason: str) -> None:
        self.reasons.append(reason)

    def stuck(self, model: str, outcome: str) -> None:
        self.stuck_runs.append((model, outcome))

    def image_pixels(self, n: int) -> None:
        self.pixels.append(n)


async def settle() -> None:
    """Lets every task that can run, run."""
    for _ in range(10):
        await asyncio.sleep(0)
