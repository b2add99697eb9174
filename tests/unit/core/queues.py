"""A batch queue with its device threads, and a whole way through it for one image."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np

from service.core.batching.policy import InferenceResult, Postprocess
from service.core.batching.queue import BatchQueue
from service.core.batching.threads import serve
from service.core.types import Instance, Observer, Priority, UInt8Array
from tests.unit.core.fakes import Device, Recorder, settle


def image_of(value: int, height: int = 4, width: int = 5) -> UInt8Array:
    return np.full((height, width, 3), value, np.uint8)


def new_queue(
    *,
    instances: int = 1,
    full_device: bool = False,
    max_batch: int = 4,
    max_batch_pixels: int = 1 << 20,
    max_queue: int = 100,
    observer: Observer | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> BatchQueue:
    return BatchQueue(
        model="m",
        instances=instances,
        full_device=full_device,
        max_batch=max_batch,
        max_batch_pixels=max_batch_pixels,
        max_queue=max_queue,
        observer=observer or Recorder(),
        clock=clock,
    )


@asynccontextmanager
async def serving(
    *instances: Instance,
    max_batch: int = 4,
    max_batch_pixels: int = 1 << 20,
    max_queue: int = 100,
    recorder: Recorder | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[BatchQueue]:
    queue = new_queue(
        instances=sum(not instance.full_device for instance in instances),
        full_device=any(instance.full_device for instance in instances),
        max_batch=max_batch,
        max_batch_pixels=max_batch_pixels,
        max_queue=max_queue,
        observer=recorder,
        clock=clock,
    )
    serve(instances, queue, name="m", nice=0, clock=clock)
    try:
        yield queue
    finally:
        queue.close()


async def submit(
    queue: BatchQueue,
    image: UInt8Array,
    deadline: float | None = None,
    priority: Priority = Priority.NORMAL,
    postprocess: Postprocess | None = None,
    *,
    wants_logits: bool = False,
) -> InferenceResult:
    """Reserves, puts and waits, as the segmenter does for an image."""
    request = queue.reserve(image.shape[0] * image.shape[1], deadline, priority)
    try:
        queue.put(request, image, postprocess, wants_logits=wants_logits)
        return await queue.result(request)
    finally:
        queue.release(request)


def task(
    queue: BatchQueue, image: UInt8Array, deadline: float | None = None
) -> asyncio.Task[InferenceResult]:
    return asyncio.get_running_loop().create_task(submit(queue, image, deadline))


async def queued_behind_a_busy_device(
    queue: BatchQueue, device: Device, images: Sequence[UInt8Array]
) -> tuple[asyncio.Task[InferenceResult], list[asyncio.Task[InferenceResult]]]:
    """Returns the task on the held device, and the tasks that wait for it."""
    device.hold()
    first = task(queue, image_of(1))
    await device.entered()
    waiting = [task(queue, image) for image in images]
    await settle()
    return first, waiting
