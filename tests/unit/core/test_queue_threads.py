"""A device thread makes the reply's parts, and takes images that other threads bring."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from service.core.batching import threads
from service.core.batching.policy import InferenceResult
from service.core.batching.queue import BatchQueue
from service.core.engines.cores import start_thread
from service.core.types import Float32Array, UInt8Array
from service.errors import DeadlineExceeded, InferenceFailed, ShuttingDown
from tests.unit.core.fakes import WAIT_S, Device, Function, Recorder, settle
from tests.unit.core.queues import (
    image_of,
    new_queue,
    queued_behind_a_busy_device,
    serving,
    submit,
)
from tests.waiting import soon, until


def held(queue: BatchQueue) -> int:
    return len(queue._reserved)


def total(label_map: UInt8Array, logits: Float32Array | None) -> Float32Array:
    assert logits is not None
    return np.asarray(logits.sum(axis=0) + label_map, np.float32)


async def test_those_who_want_logits_share_batches_among_themselves() -> None:
    device = Device()
    both: list[int] = []

    def scored(batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        both.append(len(batch))
        return batch[..., 0], np.stack([batch[..., 0], batch[..., 1]], 1).astype(np.float32)

    async with serving(Function(device.run, scored)) as queue:
        loop = asyncio.get_running_loop()
        first, plain = await queued_behind_a_busy_device(queue, device, [image_of(2), image_of(3)])
        wanted = [
            loop.create_task(submit(queue, image_of(n), postprocess=total, wants_logits=True))
            for n in (5, 6)
        ]
        await settle()
        device.release()
        await asyncio.gather(first, *plain)
        results = await asyncio.gather(*wanted)
    assert both == [2]
    assert device.values == [[1], [2, 3]]
    for value, result in zip((5, 6), results, strict=True):
        assert result.postprocessed is not None and (result.postprocessed == 3 * value).all()
        assert (result.label_map == value).all()
    assert plain[0].result().postprocessed is None


async def test_logits_of_another_size_or_none_at_all_fail_the_image() -> None:
    def scored(batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        return batch[..., 0], np.zeros((len(batch), 2, 3, 3), np.float32)

    for run in (scored, None):
        async with serving(Function(Device().run, run)) as queue:
            with pytest.raises(InferenceFailed):
                await submit(queue, image_of(1), postprocess=total, wants_logits=True)
            assert (await submit(queue, image_of(1))).postprocessed is None


async def test_what_a_reply_needs_is_made_on_the_devices_thread() -> None:
    device = Device()
    threads = []

    def double(label_map: UInt8Array, logits: Float32Array | None) -> int:
        threads.append(threading.get_ident())
        return int(label_map[0, 0]) * 2

    async with serving(device) as queue:
        result = await submit(queue, image_of(7), postprocess=double)
        plain = await submit(queue, image_of(8))
    assert (result.postprocessed, plain.postprocessed) == (14, None)
    assert set(threads) <= device.threads


async def test_what_cannot_be_postprocessed_fails_alone() -> None:
    device = Device()

    def refuse(label_map: UInt8Array, logits: Float32Array | None) -> None:
        raise ValueError("secret of the reply")

    async with serving(device) as queue:
        first, (bad, good) = await queued_behind_a_busy_device(
            queue, device, [image_of(2), image_of(3)]
        )
        good.cancel()
        bad.cancel()
        tasks = [
            asyncio.get_running_loop().create_task(submit(queue, image_of(n), postprocess=how))
            for n, how in ((4, refuse), (5, None))
        ]
        await settle()
        device.release()
        await first
        with pytest.raises(InferenceFailed):
            await tasks[0]
        assert (await tasks[1]).label_map[0, 0] == 5


# Images that another thread brings


async def test_an_image_comes_from_another_thread() -> None:
    async with serving(Device()) as queue:
        request = queue.reserve(20)
        assert held(queue) == 1, "held while it is decoded"
        await asyncio.to_thread(queue.put, request, image_of(7))
        assert held(queue) == 0
        result = await queue.result(request)
    assert (result.label_map == 7).all()


async def test_an_image_whose_caller_left_during_the_decode_never_runs() -> None:
    device, recorder = Device(), Recorder()
    async with serving(device, recorder=recorder) as queue:
        request = queue.reserve(20, time.monotonic() + 60)
        waiting = asyncio.get_running_loop().create_task(queue.result(request))
        await settle()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.to_thread(queue.put, request, image_of(2))
        assert held(queue) == 0
        await submit(queue, image_of(3))
    assert device.values == [[3]]
    assert set(recorder.depths) == {0, 1}


async def test_a_deadline_passes_during_the_decode() -> None:
    device = Device()
    async with serving(device) as queue:
        request = queue.reserve(20, time.monotonic() + 0.02)
        with pytest.raises(DeadlineExceeded):
            await queue.result(request)
        await asyncio.to_thread(queue.put, request, image_of(2))
        await submit(queue, image_of(3))
    assert device.values == [[3]]


async def test_a_deadline_that_passed_during_the_decode_is_seen_before_its_timer() -> None:
    now = [100.0]
    device = Device()
    async with serving(device, clock=lambda: now[0]) as queue:
        request = queue.reserve(20, 500.0)
        waiting = asyncio.get_running_loop().create_task(queue.result(request))
        await settle()  # its timer is minutes of real time away
        now[0] = 500.0
        await asyncio.to_thread(queue.put, request, image_of(2))
        with pytest.raises(DeadlineExceeded):
            await waiting
        with pytest.raises(DeadlineExceeded):
            await queue.result(queue.reserve(20, 500.0))
    assert device.values == []


async def test_what_had_been_run_when_the_queue_was_closed_is_answered() -> None:
    device = Device()
    async with serving(device) as queue:
        first, (second,) = await queued_behind_a_busy_device(queue, device, [image_of(2)])
        device.step()
        until(lambda: len(device.batches) == 2)  # the event loop must not hear of it yet
        queue.close()
        async with asyncio.timeout(WAIT_S):
            assert (await first).label_map[0, 0] == 1
            with pytest.raises(ShuttingDown):
                await second
        device.release()


async def test_a_fault_where_an_image_comes_ends_the_queue_and_answers_everybody() -> None:
    class Broken(Recorder):
        def queue_depth(self, model: str, version: str, n: int) -> None:
            raise RuntimeError("a fault")

    queue = new_queue(observer=Broken())
    request = queue.reserve(20)
    await asyncio.to_thread(queue.put, request, image_of(2))
    with pytest.raises(InferenceFailed):
        await queue.result(request)
    assert not queue.alive
    with pytest.raises(InferenceFailed):
        queue.reserve(20)


async def test_many_threads_bring_images_and_some_callers_leave() -> None:
    random = np.random.default_rng(0)
    async with serving(Device(), max_batch=3, max_queue=10_000) as queue:
        loop = asyncio.get_running_loop()

        async def one(n: int) -> InferenceResult:
            request = queue.reserve(20, time.monotonic() + WAIT_S)
            bringing = loop.run_in_executor(None, queue.put, request, image_of(n % 13))
            try:
                return await queue.result(request)
            finally:
                await bringing

        tasks = [loop.create_task(one(n)) for n in range(400)]
        await asyncio.sleep(0)
        leavers = {int(n) for n in random.integers(0, 400, 100)}
        for n in leavers:
            loop.call_later(float(random.random()) * 0.05, tasks[n].cancel)
        async with asyncio.timeout(WAIT_S):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for n, result in enumerate(results):
            if isinstance(result, asyncio.CancelledError):
                assert n in leavers
            else:
                assert isinstance(result, InferenceResult) and (result.label_map == n % 13).all()
        await submit(queue, image_of(1))
        assert (len(queue._policy), held(queue)) == (0, 0)
        assert not queue._running, "what is answered was taken off before"


# The threads


async def test_each_instance_has_a_thread_of_its_own_and_all_take_their_part() -> None:
    devices = [Device() for _ in range(3)]
    async with serving(*devices, max_batch=1) as queue:
        for device in devices:
            device.hold()
        tasks = [asyncio.ensure_future(submit(queue, image_of(n))) for n in range(3)]
        for device in devices:
            await device.entered()
        for device in devices:
            device.release()
        await asyncio.gather(*tasks)
    threads = [device.threads for device in devices]
    assert [len(found) for found in threads] == [1, 1, 1]
    assert len(set.union(*threads)) == 3


async def test_a_thread_that_waits_keeps_no_image() -> None:
    instance = Function(lambda batch: np.zeros(batch.shape[:3], np.uint8))
    async with serving(instance) as queue:
        image = image_of(1)
        left = weakref.ref(image)
        await submit(queue, image)
        del image
        await soon(lambda: gc.collect() >= 0 and left() is None)


async def test_threads_end_with_their_queue() -> None:
    queue = new_queue()
    (thread,) = threads.serve([Device()], queue, name="m", nice=0, clock=time.monotonic)
    assert thread.name == "infer-m-0"
    queue.close()
    await asyncio.to_thread(thread.join, WAIT_S)
    assert not thread.is_alive()


async def test_a_system_without_threads_to_give_is_told_to_the_loader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[threading.Thread] = []
    real = start_thread

    def start(*args: object, **options: object) -> threading.Thread:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(real(*args, **options))  # type: ignore[arg-type]
        return started[0]

    monkeypatch.setattr(threads, "start_thread", start)
    queue = new_queue(instances=2)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threads.serve([Device(), Device()], queue, name="m", nice=0, clock=time.monotonic)
    assert not queue.alive
    await asyncio.to_thread(started[0].join, WAIT_S)
    assert not started[0].is_alive()


def test_the_interpreter_ends_after_the_run_at_hand_though_nobody_closed_the_queue() -> None:
    program = """
import asyncio, threading, time
from service.core.batching.threads import serve
from tests.unit.core.fakes import Function
from tests.unit.core.queues import image_of, new_queue
begun = threading.Event()
def run(batch):
    begun.set()
    time.sleep(0.3)
    print("ran", len(batch), flush=True)
    return batch[..., 0]
async def main():
    queue = new_queue()
    serve([Function(run)], queue, name="m", nice=0, clock=time.monotonic)
    queue.put(queue.reserve(20), image_of(1))
    begun.wait(60)
asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert (ended.stdout, ended.stderr) == ("ran 1\n", "")
