"""Who shares a batch, who waits, and what happens to everybody when something goes wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest

from service.core.batching.policy import InferenceResult
from service.core.types import UInt8Array
from service.errors import DeadlineExceeded, InferenceFailed, Overloaded
from tests.unit.core.fakes import POISON, WAIT_S, Device, Function, Recorder, settle
from tests.unit.core.queues import image_of, queued_behind_a_busy_device, serving, submit, task


async def test_a_lone_image_and_its_labels_are_not_copied() -> None:
    given: list[UInt8Array] = []
    answer = np.zeros((1, 4, 5), np.uint8)

    def run(batch: UInt8Array) -> UInt8Array:
        given.append(batch)
        return answer

    image = image_of(7)
    async with serving(Function(run)) as queue:
        result = await submit(queue, image, time.monotonic() + 60)
    assert np.shares_memory(given[0], image)
    assert np.shares_memory(result.label_map, answer)
    assert result.batch_size == 1
    assert result.queue_s >= 0
    assert result.infer_s > 0


async def test_images_gather_while_the_device_is_busy() -> None:
    device, recorder = Device(), Recorder()
    async with serving(device, recorder=recorder) as queue:
        first, waiting = await queued_behind_a_busy_device(
            queue, device, [image_of(v) for v in (2, 3, 4, 5, 6)]
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
        image_of(2, *wide),
        image_of(3, *tall),  # as many pixels, another shape
        image_of(4, *wide),
        image_of(5, *tall),
    ]
    async with serving(device) as queue:
        first, waiting = await queued_behind_a_busy_device(queue, device, images)
        device.release()
        results = await asyncio.gather(first, *waiting)
    assert device.values == [[1], [2, 4], [3, 5]]
    assert [r.label_map.shape for r in results[1:]] == [wide, tall, wide, tall]


async def test_a_batch_stays_within_its_pixels_and_a_larger_image_runs_alone() -> None:
    device = Device()
    big = [image_of(v, 10, 10) for v in (6, 7)]
    async with serving(device, max_batch_pixels=60) as queue:
        first, waiting = await queued_behind_a_busy_device(
            queue, device, [*(image_of(v) for v in (2, 3, 4, 5)), *big]
        )
        device.release()
        await asyncio.gather(first, *waiting)
    assert device.values == [[1], [2, 3, 4], [5], [6], [7]]


async def test_a_full_queue_refuses_with_a_time_to_retry() -> None:
    device, recorder = Device(), Recorder()
    async with serving(device, max_queue=2, recorder=recorder) as queue:
        first, waiting = await queued_behind_a_busy_device(queue, device, [image_of(2)] * 2)
        with pytest.raises(Overloaded) as caught:
            await submit(queue, image_of(3))
        assert 1 <= caught.value.retry_after_s <= 60
        assert recorder.reasons == ["queue_full"]
        device.release()
        await asyncio.gather(first, *waiting)
        assert (await submit(queue, image_of(4))).label_map[0, 0] == 4


async def test_a_cancelled_image_frees_its_place_and_never_runs() -> None:
    device, recorder = Device(), Recorder()
    async with serving(device, max_queue=2, recorder=recorder) as queue:
        first, waiting = await queued_behind_a_busy_device(
            queue, device, [image_of(2), image_of(3)]
        )
        waiting[0].cancel()
        await settle()
        assert recorder.depths[-1] == 1
        late = task(queue, image_of(4))
        await settle()
        device.release()
        await asyncio.gather(first, waiting[1], late)
    assert waiting[0].cancelled()
    assert device.values == [[1], [3, 4]]


async def test_an_image_cancelled_in_the_moment_the_device_is_free_never_runs() -> None:
    device = Device()
    async with serving(device) as queue:
        first, waiting = await queued_behind_a_busy_device(queue, device, [image_of(2)])
        waiting[0].cancel()  # its task has yet to hear of it when the device's answer comes
        device.release()
        await first
        await settle()
        assert waiting[0].cancelled()
        assert device.values == [[1]]


async def test_a_mate_that_leaves_in_mid_batch_costs_the_others_nothing() -> None:
    """MLServer's batcher left a batch mate unanswered here."""
    device = Device()
    async with serving(device) as queue:
        first, waiting = await queued_behind_a_busy_device(
            queue, device, [image_of(v) for v in (2, 3, 4)]
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
        assert (await submit(queue, image_of(9))).label_map[0, 0] == 9
    assert device.values == [[1], [2, 3, 4], [9]], "nothing is run twice"
    for result, value in zip(results[1:], (3, 4), strict=True):
        assert isinstance(result, InferenceResult)
        assert (result.label_map == value).all()


async def test_a_deadline_passes_in_the_queue_while_the_device_is_busy() -> None:
    device, recorder = Device(), Recorder()
    async with serving(device, recorder=recorder) as queue:
        first, _ = await queued_behind_a_busy_device(queue, device, [])
        with pytest.raises(DeadlineExceeded):
            await submit(queue, image_of(2), time.monotonic() + 0.02)
        assert not first.done()
        assert recorder.depths[-1] == 0
        device.release()
        await first
    assert device.values == [[1]]


async def test_a_deadline_passes_on_the_device() -> None:
    device = Device()
    device.hold()
    async with serving(device) as queue:
        with pytest.raises(DeadlineExceeded):
            await submit(queue, image_of(1), time.monotonic() + 0.02)
        device.release()
        assert (await submit(queue, image_of(2))).label_map[0, 0] == 2


async def test_a_deadline_that_has_passed_never_reaches_the_device() -> None:
    now = [100.0]
    device = Device()
    async with serving(device, clock=lambda: now[0]) as queue:
        first, _ = await queued_behind_a_busy_device(queue, device, [])
        late = task(queue, image_of(2), 500.0)  # its timer is minutes of real time away
        await settle()
        now[0] = 500.0
        device.release()
        with pytest.raises(DeadlineExceeded):
            await late
        await first
    assert device.values == [[1]]


async def test_one_bad_image_fails_alone_and_only_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = Device()
    async with serving(device) as queue:
        first, waiting = await queued_behind_a_busy_device(
            queue, device, [image_of(v) for v in (2, POISON, 4)]
        )
        device.release()
        results = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert (await submit(queue, image_of(9))).label_map[0, 0] == 9
    assert device.values == [[1], [2, POISON, 4], [2], [POISON], [4], [9]]
    for result, value in ((results[1], 2), (results[3], 4)):
        assert isinstance(result, InferenceResult)
        assert (result.label_map == value).all()
        assert result.batch_size == 1
    assert isinstance(results[2], InferenceFailed)
    assert "secret" not in str(results[2])
    assert "secret of the device" in caplog.text


@pytest.mark.parametrize("run", [lambda batch: batch[:, :2, :, 0], lambda batch: batch[:0, ..., 0]])
async def test_a_network_that_answers_in_another_shape_fails_visibly(
    run: Callable[[UInt8Array], UInt8Array],
) -> None:
    async with serving(Function(run)) as queue:
        with pytest.raises(InferenceFailed):
            await submit(queue, image_of(2))


async def test_a_worker_that_dies_answers_everybody_and_is_seen() -> None:
    class Broken(Recorder):
        def batch(self, model: str, size: int, closed: str) -> None:
            raise BrokenWorker

    class BrokenWorker(BaseException):
        """Not an Exception, so that it is no failure of one batch."""

    device = Device()
    async with serving(device, recorder=Broken()) as queue:
        first, waiting = await queued_behind_a_busy_device(queue, device, [image_of(2)])
        device.release()
        for task in (first, *waiting):
            with pytest.raises(InferenceFailed):
                await task
        assert not queue.alive
        with pytest.raises(InferenceFailed):
            await submit(queue, image_of(3))
