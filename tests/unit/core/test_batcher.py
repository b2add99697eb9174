from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.batching.batcher import Batcher
from service.core.batching.lanes import Labelled
from service.core.types import Instance, UInt8Array
from service.errors import DeadlineExceeded, InferenceFailed, Overloaded, ShuttingDown
from tests.unit.core.fakes import POISON, WAIT_S, Device, Function, Recorder, settle


def picture(value: int, height: int = 4, width: int = 5) -> UInt8Array:
    return np.full((height, width, 3), value, np.uint8)


@asynccontextmanager
async def started(
    instance: Instance,
    *,
    max_batch: int = 4,
    max_batch_pixels: int = 1 << 20,
    max_queue: int = 100,
    recorder: Recorder | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Batcher]:
    batcher = Batcher(
        [instance],
        model="m",
        max_batch=max_batch,
        max_batch_pixels=max_batch_pixels,
        max_queue=max_queue,
        observer=recorder or Recorder(),
        clock=clock,
    )
    batcher.start()
    try:
        yield batcher
    finally:
        batcher.close()


def submit(
    batcher: Batcher, image: UInt8Array, deadline: float | None = None
) -> asyncio.Task[Labelled]:
    return asyncio.get_running_loop().create_task(batcher.submit(image, deadline))


async def queued_behind_a_busy_device(
    batcher: Batcher, device: Device, images: list[UInt8Array]
) -> tuple[asyncio.Task[Labelled], list[asyncio.Task[Labelled]]]:
    """The task on the held device, and the tasks that wait for it."""
    device.hold()
    first = submit(batcher, picture(1))
    await device.entered()
    waiting = [submit(batcher, image) for image in images]
    await settle()
    return first, waiting


async def test_a_lone_picture_and_its_labels_are_not_copied() -> None:
    given: list[UInt8Array] = []
    answer = np.zeros((1, 4, 5), np.uint8)

    def run(batch: UInt8Array) -> UInt8Array:
        given.append(batch)
        return answer

    image = picture(7)
    async with started(Function(run)) as batcher:
        result = await batcher.submit(image)
    assert np.shares_memory(given[0], image)
    assert np.shares_memory(result.label_map, answer)


async def test_an_idle_device_starts_at_once() -> None:
    device = Device()
    async with started(device) as batcher:
        result = await batcher.submit(picture(7))
    assert (result.label_map == 7).all()
    assert result.label_map.shape == (4, 5)
    assert result.batch_size == 1
    assert result.queue_s >= 0
    assert result.infer_s > 0


async def test_images_gather_while_the_device_is_busy() -> None:
    device, recorder = Device(), Recorder()
    async with started(device, recorder=recorder) as batcher:
        first, waiting = await queued_behind_a_busy_device(
            batcher, device, [picture(v) for v in (2, 3, 4, 5, 6)]
        )
        device.release()
        results = await asyncio.gather(first, *waiting)
    assert device.values == [[1], [2, 3, 4, 5], [6]]
    assert [r.batch_size for r in results] == [1, 4, 4, 4, 4, 1]
    assert [int(r.label_map[0, 0]) for r in results] == [1, 2, 3, 4, 5, 6]
    assert recorder.batches == [1, 4, 1]
    assert max(recorder.depths) == 5
    assert recorder.depths[-1] == 0
    assert len(device.threads) == 1


async def test_only_equal_shapes_share_a_batch_and_the_oldest_leads() -> None:
    device = Device()
    wide, tall = (2, 9), (9, 2)
    images = [
        picture(2, *wide),
        picture(3, *tall),  # as many pixels, another shape
        picture(4, *wide),
        picture(5, *tall),
    ]
    async with started(device) as batcher:
        first, waiting = await queued_behind_a_busy_device(batcher, device, images)
        device.release()
        results = await asyncio.gather(first, *waiting)
    assert device.values == [[1], [2, 4], [3, 5]]
    assert [r.label_map.shape for r in results[1:]] == [wide, tall, wide, tall]


async def test_a_batch_stays_within_its_pixels_and_a_larger_image_runs_alone() -> None:
    device = Device()
    big = [picture(v, 10, 10) for v in (6, 7)]
    async with started(device, max_batch_pixels=60) as batcher:
        first, waiting = await queued_behind_a_busy_device(
            batcher, device, [*(picture(v) for v in (2, 3, 4, 5)), *big]
        )
        device.release()
        await asyncio.gather(first, *waiting)
    assert device.values == [[1], [2, 3, 4], [5], [6], [7]]


async def test_a_full_queue_refuses_with_a_time_to_retry() -> None:
    device, recorder = Device(), Recorder()
    async with started(device, max_queue=2, recorder=recorder) as batcher:
        first, waiting = await queued_behind_a_busy_device(batcher, device, [picture(2)] * 2)
        with pytest.raises(Overloaded) as caught:
            await batcher.submit(picture(3))
        assert 1 <= caught.value.retry_after_s <= 60
        assert recorder.reasons == ["queue_full"]
        device.release()
        await asyncio.gather(first, *waiting)
        assert (await batcher.submit(picture(4))).label_map[0, 0] == 4


async def test_a_cancelled_image_frees_its_place_and_never_runs() -> None:
    device, recorder = Device(), Recorder()
    async with started(device, max_queue=2, recorder=recorder) as batcher:
        first, waiting = await queued_behind_a_busy_device(
            batcher, device, [picture(2), picture(3)]
        )
        waiting[0].cancel()
        await settle()
        assert recorder.depths[-1] == 1
        late = submit(batcher, picture(4))
        await settle()
        device.release()
        await asyncio.gather(first, waiting[1], late)
    assert waiting[0].cancelled()
    assert device.values == [[1], [3, 4]]


async def test_an_image_cancelled_in_the_moment_the_device_is_free_never_runs() -> None:
    device = Device()
    async with started(device) as batcher:
        first, waiting = await queued_behind_a_busy_device(batcher, device, [picture(2)])
        waiting[0].cancel()  # its task has yet to hear of it when the device's answer comes
        device.release()
        await first
        await settle()
        assert waiting[0].cancelled()
        assert device.values == [[1]]


async def test_a_mate_that_leaves_in_mid_batch_costs_the_others_nothing() -> None:
    """MLServer's batcher left a batch mate unanswered here."""
    device = Device()
    async with started(device) as batcher:
        first, waiting = await queued_behind_a_busy_device(
            batcher, device, [picture(v) for v in (2, 3, 4)]
        )
        device.step()
        await first
        await device.entered()
        assert device.values[-1] == [2, 3, 4]
        waiting[0].cancel()
        await settle()
        device.release()
        async with asyncio.timeout(WAIT_S):
            results = await asyncio.gather(*waiting, return_exceptions=True)
        assert (await batcher.submit(picture(9))).label_map[0, 0] == 9
    assert device.values == [[1], [2, 3, 4], [9]], "nothing is run twice"
    for result, value in zip(results[1:], (3, 4), strict=True):
        assert isinstance(result, Labelled)
        assert (result.label_map == value).all()


async def test_the_caller_of_a_running_image_may_leave() -> None:
    device = Device()
    async with started(device) as batcher:
        first, waiting = await queued_behind_a_busy_device(batcher, device, [picture(2)])
        first.cancel()
        await settle()
        assert first.cancelled()
        device.release()
        assert (await waiting[0]).label_map[0, 0] == 2


async def test_a_deadline_passes_in_the_queue_while_the_device_is_busy() -> None:
    device, recorder = Device(), Recorder()
    async with started(device, recorder=recorder) as batcher:
        first, _ = await queued_behind_a_busy_device(batcher, device, [])
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(picture(2), time.monotonic() + 0.02)
        assert not first.done()
        assert recorder.depths[-1] == 0
        device.release()
        await first
    assert device.values == [[1]]


async def test_a_deadline_passes_on_the_device() -> None:
    device = Device()
    device.hold()
    async with started(device) as batcher:
        with pytest.raises(DeadlineExceeded):
            await batcher.submit(picture(1), time.monotonic() + 0.02)
        device.release()
        assert (await batcher.submit(picture(2))).label_map[0, 0] == 2


async def test_a_deadline_that_has_passed_never_reaches_the_device() -> None:
    now = [100.0]
    device = Device()
    async with started(device, clock=lambda: now[0]) as batcher:
        first, _ = await queued_behind_a_busy_device(batcher, device, [])
        late = submit(batcher, picture(2), 500.0)  # its timer is minutes of real time away
        await settle()
        now[0] = 500.0
        device.release()
        with pytest.raises(DeadlineExceeded):
            await late
        await first
    assert device.values == [[1]]


async def test_a_deadline_that_is_met_leaves_no_trace() -> None:
    device = Device()
    async with started(device) as batcher:
        assert (await batcher.submit(picture(2), time.monotonic() + 60)).batch_size == 1
        await settle()


async def test_one_bad_image_fails_alone() -> None:
    device = Device()
    async with started(device) as batcher:
        first, waiting = await queued_behind_a_busy_device(
            batcher, device, [picture(v) for v in (2, POISON, 4)]
        )
        device.release()
        results = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert (await batcher.submit(picture(9))).label_map[0, 0] == 9
    assert device.values == [[1], [2, POISON, 4], [2], [POISON], [4], [9]]
    for result, value in ((results[1], 2), (results[3], 4)):
        assert isinstance(result, Labelled)
        assert (result.label_map == value).all()
        assert result.batch_size == 1
    assert isinstance(results[2], InferenceFailed)
    assert "secret" not in str(results[2])


@pytest.mark.parametrize("run", [lambda batch: batch[:, :2, :, 0], lambda batch: batch[:0, ..., 0]])
async def test_a_network_that_answers_in_another_shape_fails_visibly(
    run: Callable[[UInt8Array], UInt8Array],
) -> None:
    async with started(Function(run)) as batcher:
        with pytest.raises(InferenceFailed):
            await batcher.submit(picture(2))


async def test_closing_fails_what_waits_and_what_runs() -> None:
    device = Device()
    async with started(device) as batcher:
        first, waiting = await queued_behind_a_busy_device(batcher, device, [picture(2)])
        batcher.close()
        for task in (first, *waiting):
            with pytest.raises(ShuttingDown):
                await task
        with pytest.raises(ShuttingDown):
            await batcher.submit(picture(3))
        assert not batcher.alive
        device.release()


async def test_a_batcher_that_was_not_started_says_so() -> None:
    batcher = Batcher(
        [Device()],
        model="m",
        max_batch=1,
        max_batch_pixels=1,
        max_queue=1,
        observer=Recorder(),
        clock=time.monotonic,
    )
    assert not batcher.alive
    with pytest.raises(ShuttingDown, match="not started"):
        await batcher.submit(picture(1))
    batcher.close()


async def test_a_worker_that_dies_answers_everybody_and_is_seen() -> None:
    class Broken(Recorder):
        def batch(self, model: str, size: int) -> None:
            raise BrokenWorker

    class BrokenWorker(BaseException):
        """Not an Exception, so that it is no failure of one batch."""

    device = Device()
    async with started(device, recorder=Broken()) as batcher:
        first, waiting = await queued_behind_a_busy_device(batcher, device, [picture(2)])
        device.release()
        for task in (first, *waiting):
            with pytest.raises(InferenceFailed):
                await task
        assert not batcher.alive
        with pytest.raises(InferenceFailed):
            await batcher.submit(picture(3))


@settings(max_examples=25, deadline=None)
@given(
    pictures=st.lists(
        st.tuples(st.sampled_from([(1, 1), (2, 3), (3, 2)]), st.integers(0, 20), st.booleans()),
        min_size=1,
        max_size=20,
    ),
    max_batch=st.integers(1, 5),
)
def test_everybody_gets_their_own_answer_or_a_reason(
    pictures: list[tuple[tuple[int, int], int, bool]], max_batch: int
) -> None:
    async def scenario() -> None:
        device = Device()
        async with started(device, max_batch=max_batch) as batcher:
            _, tasks = await queued_behind_a_busy_device(
                batcher, device, [picture(value, *shape) for shape, value, _ in pictures]
            )
            for task, (_, _, leaves) in zip(tasks, pictures, strict=True):
                if leaves:
                    task.cancel()
            device.release()
            async with asyncio.timeout(WAIT_S):
                results = await asyncio.gather(*tasks, return_exceptions=True)
        for result, (shape, value, leaves) in zip(results, pictures, strict=True):
            if leaves:
                assert isinstance(result, asyncio.CancelledError)
            elif value == POISON:
                assert isinstance(result, InferenceFailed)
            else:
                assert isinstance(result, Labelled)
                assert result.label_map.shape == shape
                assert (result.label_map == value).all()
        for batch in device.batches:
            assert len(batch) <= max_batch

    asyncio.run(scenario())


def squeeze(logits: npt.NDArray[np.float32], label_map: UInt8Array) -> npt.NDArray[np.float32]:
    return np.asarray(logits.sum(axis=0) + label_map, np.float32)


async def test_those_who_want_logits_share_batches_among_themselves() -> None:
    device = Device()
    both: list[int] = []

    def scored(batch: UInt8Array) -> tuple[UInt8Array, npt.NDArray[np.float32]]:
        both.append(len(batch))
        return batch[..., 0], np.stack([batch[..., 0], batch[..., 1]], 1).astype(np.float32)

    async with started(Function(device.run, scored)) as batcher:
        loop = asyncio.get_running_loop()
        first, plain = await queued_behind_a_busy_device(batcher, device, [picture(2), picture(3)])
        wanted = [loop.create_task(batcher.submit(picture(n), squeeze=squeeze)) for n in (5, 6)]
        await settle()
        device.release()
        await asyncio.gather(first, *plain)
        results = await asyncio.gather(*wanted)
    assert both == [2]
    assert device.values == [[1], [2, 3]]
    for value, result in zip((5, 6), results, strict=True):
        assert result.scores is not None and (result.scores == 3 * value).all()
        assert (result.label_map == value).all()
    assert plain[0].result().scores is None


async def test_logits_of_another_size_or_none_at_all_fail_the_image() -> None:
    def scored(batch: UInt8Array) -> tuple[UInt8Array, npt.NDArray[np.float32]]:
        return batch[..., 0], np.zeros((len(batch), 2, 3, 3), np.float32)

    for run in (scored, None):
        async with started(Function(Device().run, run)) as batcher:
            with pytest.raises(InferenceFailed):
                await batcher.submit(picture(1), squeeze=squeeze)
            assert (await batcher.submit(picture(1))).scores is None


async def test_what_a_reply_needs_is_made_on_the_devices_thread() -> None:
    device = Device()
    threads = []

    def finish(label_map: UInt8Array) -> int:
        threads.append(threading.get_ident())
        return int(label_map[0, 0]) * 2

    async with started(device) as batcher:
        result = await batcher.submit(picture(7), finish=finish)
        plain = await batcher.submit(picture(8))
    assert (result.finished, plain.finished) == (14, None)
    assert set(threads) <= device.threads


async def test_what_cannot_be_finished_fails_alone() -> None:
    device = Device()

    def refuse(label_map: UInt8Array) -> None:
        raise ValueError("secret of the reply")

    async with started(device) as batcher:
        first, (bad, good) = await queued_behind_a_busy_device(
            batcher, device, [picture(2), picture(3)]
        )
        good.cancel()
        bad.cancel()
        tasks = [
            asyncio.get_running_loop().create_task(batcher.submit(picture(n), finish=how))
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
    device = Device()
    async with started(device) as batcher:
        with batcher.reserve(20) as place:
            ticket = batcher.ticket(None, place)
            assert batcher._n_reserved == 1, "held while it is decoded"
            await asyncio.to_thread(batcher.put, ticket, picture(7))
            assert batcher._n_reserved == 0
            result = await batcher.answer(ticket)
    assert (result.label_map == 7).all()


async def test_an_image_whose_caller_left_during_the_decode_never_runs() -> None:
    device, recorder = Device(), Recorder()
    async with started(device, recorder=recorder) as batcher:
        with batcher.reserve(20) as place:
            ticket = batcher.ticket(time.monotonic() + 60, place)
            task = asyncio.get_running_loop().create_task(batcher.answer(ticket))
            await settle()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.to_thread(batcher.put, ticket, picture(2))
        assert ticket.timer is not None and ticket.timer.cancelled()
        assert batcher._n_reserved == 0
        await batcher.submit(picture(3))
    assert device.values == [[3]]
    assert set(recorder.depths) == {0}


async def test_a_deadline_passes_during_the_decode() -> None:
    device = Device()
    async with started(device) as batcher:
        ticket = batcher.ticket(time.monotonic() + 0.02, None)
        with pytest.raises(DeadlineExceeded):
            await batcher.answer(ticket)
        await asyncio.to_thread(batcher.put, ticket, picture(2))
        await batcher.submit(picture(3))
    assert device.values == [[3]]


async def test_a_deadline_that_passed_during_the_decode_is_seen_before_its_timer() -> None:
    now = [100.0]
    device = Device()
    async with started(device, clock=lambda: now[0]) as batcher:
        ticket = batcher.ticket(500.0, None)  # its timer is minutes of real time away
        now[0] = 500.0
        await asyncio.to_thread(batcher.put, ticket, picture(2))
        with pytest.raises(DeadlineExceeded):
            await batcher.answer(ticket)
        with pytest.raises(DeadlineExceeded):
            batcher.ticket(500.0, None)
    assert device.values == []


async def test_an_image_that_comes_after_the_end_is_answered() -> None:
    device = Device()
    async with started(device) as batcher:
        ticket = batcher.ticket(None, batcher.reserve(20))
        batcher.close()
        await asyncio.to_thread(batcher.put, ticket, picture(2))
        with pytest.raises(ShuttingDown):
            await batcher.answer(ticket)
        assert batcher._n_reserved == 0
    assert device.values == []


async def test_what_had_been_run_when_the_batcher_was_closed_is_answered() -> None:
    device = Device()
    async with started(device) as batcher:
        first, (second,) = await queued_behind_a_busy_device(batcher, device, [picture(2)])
        device.step()
        ends_s = time.monotonic() + WAIT_S
        while len(device.batches) < 2 and time.monotonic() < ends_s:
            time.sleep(0.001)  # noqa: ASYNC251 - the event loop must not hear of it yet
        batcher.close()
        async with asyncio.timeout(WAIT_S):
            assert (await first).label_map[0, 0] == 1
            with pytest.raises(ShuttingDown):
                await second
        device.release()


async def test_a_fault_where_an_image_comes_ends_the_batcher_and_answers_everybody() -> None:
    class Broken(Recorder):
        def queue_depth(self, model: str, n: int) -> None:
            raise RuntimeError("a fault")

    batcher = Batcher(
        [Device()],
        model="m",
        max_batch=1,
        max_batch_pixels=1,
        max_queue=1,
        observer=Broken(),
        clock=time.monotonic,
    )
    batcher.start()
    ticket = batcher.ticket(None, None)
    await asyncio.to_thread(batcher.put, ticket, picture(2))
    with pytest.raises(InferenceFailed):
        await batcher.answer(ticket)
    assert not batcher.alive


async def test_many_threads_bring_images_and_some_callers_leave() -> None:
    random = np.random.default_rng(0)
    async with started(Device(), max_batch=3, max_queue=10_000) as batcher:
        loop = asyncio.get_running_loop()

        async def one(n: int) -> Labelled:
            with batcher.reserve(20) as place:
                ticket = batcher.ticket(time.monotonic() + WAIT_S, place)
                bringing = loop.run_in_executor(None, batcher.put, ticket, picture(n % 13))
                try:
                    return await batcher.answer(ticket)
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
                assert isinstance(result, Labelled) and (result.label_map == n % 13).all()
        await batcher.submit(picture(1))
        assert (len(batcher._queue), batcher._n_reserved, batcher._running) == (0, 0, {})
        assert len(batcher._idle) == 1
