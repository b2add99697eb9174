"""Images that come and go in virtual time, and what became of each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from service.core.batching.queue import BatchQueue
from service.core.types import Priority, UInt8Array
from tests.unit.core.fakes import Recorder
from tests.unit.core.virtual import Machine, VirtualQueue

SHAPES = ((1, 1), (2, 3), (3, 2), (40, 50))
CAP_S = 0.1
RUN_S = 0.05


def image_of(value: int, shape: tuple[int, int] = (2, 3)) -> UInt8Array:
    return np.full((*shape, 3), value, np.uint8)


@asynccontextmanager
async def started(
    machine: Machine, *, instances: int = 1, full_device: bool = False, **options: Any
) -> AsyncIterator[VirtualQueue]:
    queue = VirtualQueue(
        machine,
        instances=instances,
        full_device=full_device,
        **{
            "model": "m",
            "max_batch": 4,
            "max_batch_pixels": 1 << 20,
            "max_queue": 1000,
            "age_cap_s": CAP_S,
            "observer": Recorder(),
            "clock": asyncio.get_running_loop().time,
            **options,
        },
    )
    try:
        yield queue
    finally:
        queue.close()


@contextmanager
def reserved(queue: BatchQueue) -> Iterator[None]:
    request = queue.reserve(6)
    try:
        yield
    finally:
        queue.release(request)


@dataclass(frozen=True)
class Arrival:
    """after_s: since the arrival before. decode_s: between its room and its image."""

    after_s: float
    shape: tuple[int, int]
    value: int
    priority: Priority
    decode_s: float
    deadline_s: float | None
    leaves_s: float | None


@dataclass
class Told:
    """Says what became of an arrival."""

    arrival: Arrival
    came_s: float
    queued_s: float = math.nan
    result: object = None
    answered_s: float = math.nan
    answers: int = 0


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        after_s=st.sampled_from([0.0, 0.0, 0.001, 0.01, 0.06, 0.5]),
        shape=st.sampled_from(SHAPES),
        value=st.integers(0, 20),
        priority=st.sampled_from(Priority),
        decode_s=st.sampled_from([0.0, 0.002, 0.03]),
        deadline_s=st.sampled_from([None, None, 0.02, 0.08, 0.3, 5.0]),
        leaves_s=st.sampled_from([None, None, None, 0.0, 0.01, 0.1]),
    ),
    min_size=1,
    max_size=40,
)


@dataclass
class World:
    machine: Machine = field(default_factory=lambda: Machine(lambda batch: RUN_S))
    told: list[Told] = field(default_factory=list)
    recorder: Recorder = field(default_factory=Recorder)

    async def play(self, queue: BatchQueue, arrivals: list[Arrival]) -> None:
        """Every arrival in its time, until the last is answered."""
        loop = asyncio.get_running_loop()
        tasks = []
        for arrival in arrivals:
            if arrival.after_s:
                await asyncio.sleep(arrival.after_s)
            told = Told(arrival, loop.time())
            self.told.append(told)
            task = loop.create_task(self._one(queue, told))
            tasks.append(task)
            if arrival.leaves_s is not None:
                loop.call_later(arrival.leaves_s, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(10)  # whatever still runs comes to its end

    async def _one(self, queue: BatchQueue, told: Told) -> None:
        arrival, now = told.arrival, asyncio.get_running_loop().time
        deadline = None if arrival.deadline_s is None else told.came_s + arrival.deadline_s
        try:
            pixels = arrival.shape[0] * arrival.shape[1]
            request = queue.reserve(pixels, deadline, arrival.priority)
            try:
                await asyncio.sleep(arrival.decode_s)
                told.queued_s = now()
                queue.put(request, image_of(arrival.value, arrival.shape))
                told.result = await queue.result(request)
            finally:
                queue.release(request)
        except BaseException as error:
            told.result = error
            if isinstance(error, asyncio.CancelledError):
                raise
        finally:
            told.answered_s = now()
            told.answers += 1


def counters(queue: BatchQueue) -> tuple[int, ...]:
    """All that is held: nothing, once everybody is answered."""
    return (
        len(queue._policy),
        int(queue._policy.ahead_px(None, ())),
        len(queue._reserved),
        len(queue._retries),
        len(queue._running),
    )
