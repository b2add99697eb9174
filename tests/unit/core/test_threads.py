from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.core.batching.threads import Pool
from service.core.engines.cores import yield_to_event_loop
from service.errors import DeadlineExceeded, ShuttingDown
from tests.unit.core.fakes import WAIT_S, settle


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(1, time.monotonic)
    yield pool
    pool.close()


class Job:
    """Work that lasts until it is told to end."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.end = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        if not self.end.wait(WAIT_S):
            raise RuntimeError("never ended")
        return "done"


async def test_work_runs_on_another_thread(pool: Pool) -> None:
    assert await pool.run(threading.get_ident, None) != threading.get_ident()


async def test_what_work_raises_comes_out(pool: Pool) -> None:
    def fail() -> None:
        raise TimeoutError("of the work's own")

    for deadline in (None, time.monotonic() + 60):
        with pytest.raises(TimeoutError, match="of the work's own"):
            await pool.run(fail, deadline)


async def test_a_deadline_ends_the_wait_and_work_not_begun_never_begins(pool: Pool) -> None:
    job, called = Job(), []
    busy = asyncio.get_running_loop().create_task(pool.run(job, None))
    await asyncio.to_thread(job.begun.wait, WAIT_S)
    with pytest.raises(DeadlineExceeded):
        await pool.run(lambda: called.append(1), time.monotonic() + 0.02)
    job.end.set()
    assert await busy == "done"
    await pool.run(lambda: None, None)  # whatever was queued before has had its turn
    assert called == []


async def test_a_deadline_that_has_passed_begins_nothing(pool: Pool) -> None:
    called: list[int] = []
    with pytest.raises(DeadlineExceeded):
        await pool.run(lambda: called.append(1), time.monotonic() - 1)
    assert called == []


async def test_closing_answers_what_waits(pool: Pool) -> None:
    job = Job()
    busy = asyncio.get_running_loop().create_task(pool.run(job, None))
    await asyncio.to_thread(job.begun.wait, WAIT_S)
    waiting = asyncio.get_running_loop().create_task(pool.run(lambda: 1, None))
    await settle()
    pool.close()
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await pool.run(lambda: 1, None)
    job.end.set()
    assert await busy == "done"


@pytest.mark.parametrize("then", [lambda pool: None, lambda pool: pool.close()])
async def test_a_caller_that_leaves_is_cancelled_and_not_told_of_shutdown(
    pool: Pool, then: Callable[[Pool], None]
) -> None:
    job = Job()
    task = asyncio.get_running_loop().create_task(pool.run(job, None))
    await asyncio.to_thread(job.begun.wait, WAIT_S)
    task.cancel()
    then(pool)
    with pytest.raises(asyncio.CancelledError):
        await task
    job.end.set()


async def test_work_that_is_handed_on_tells_its_future_only_what_it_raises(pool: Pool) -> None:
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[str]] = [loop.create_future() for _ in range(3)]
    called: list[int] = []

    def fail() -> None:
        raise TimeoutError("of the work's own")

    futures[2].cancel()
    pool.submit(lambda: called.append(1), futures[0])
    pool.submit(fail, futures[1])
    pool.submit(lambda: called.append(2), futures[2])
    with pytest.raises(TimeoutError, match="of the work's own"):
        await futures[1]
    await pool.run(lambda: None, None)  # whatever was queued before has had its turn
    assert called == [1] and not futures[0].done()


async def test_closing_answers_what_was_to_be_handed_on(pool: Pool) -> None:
    loop, job = asyncio.get_running_loop(), Job()
    busy = loop.create_task(pool.run(job, None))
    await asyncio.to_thread(job.begun.wait, WAIT_S)
    futures: list[asyncio.Future[str]] = [loop.create_future() for _ in range(2)]
    pool.submit(lambda: None, futures[0])
    pool.close()
    pool.submit(lambda: None, futures[1])
    for future in futures:
        with pytest.raises(ShuttingDown):
            await future
    job.end.set()
    assert await busy == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_a_thread_stands_back_and_the_others_do_not() -> None:
    def nice() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def stand_back() -> int:
        yield_to_event_loop(3)
        return nice()

    before = nice()
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(stand_back).result() == min(19, before + 3)
    assert nice() == before
