"""Images and futures to batches: one queue and one device thread for one model.

An idle device starts at once; images gather only while it is busy. A batch is the oldest waiting
image and the next ones of its shape, so an answer never depends on its batch mates and nobody is
overtaken for long. Time runs out, and callers leave, while queued and while the device is busy:
each future is settled alone and a late result for it is dropped. When a batch fails its images are
run one by one, so that one bad image costs its mates a little time and nothing else.

All state is touched on the event loop only; the device thread sees arrays and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from service.core.types import Clock, Observer
from service.errors import DeadlineExceeded, InferenceFailed, Overloaded, ShuttingDown

UInt8Array = npt.NDArray[np.uint8]
Run = Callable[[UInt8Array], UInt8Array]
"""uint8 RGB [N,H,W,3] -> uint8 [N,H,W]."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Labelled:
    """`label_map` uint8 [H,W]; seconds waited, and seconds on the device with the whole batch."""

    label_map: UInt8Array
    queue_s: float
    infer_s: float
    batch_size: int


@dataclass(eq=False, slots=True)
class _Item:
    image: UInt8Array
    future: asyncio.Future[Labelled]
    enqueued_s: float
    deadline: float | None
    timer: asyncio.TimerHandle | None = field(default=None)


class Batcher:
    """`start`, then `submit` from any task of the same event loop, then `aclose`."""

    def __init__(
        self,
        run: Run,
        *,
        model: str,
        max_batch: int,
        max_batch_pixels: int,
        max_queue: int,
        observer: Observer,
        clock: Clock,
    ) -> None:
        """run: called on one dedicated thread, never twice at once. model: the observer's label.

        max_batch_pixels bounds N * H * W of a batch; a larger single image still runs, alone.
        """
        self._run = run
        self._model = model
        self._max_batch = max_batch
        self._max_batch_pixels = max_batch_pixels
        self._max_queue = max_queue
        self._observer = observer
        self._clock = clock
        self._queue: dict[_Item, None] = {}  # insertion order is age; removal is O(1)
        self._arrived = asyncio.Event()
        self._device = ThreadPoolExecutor(1, thread_name_prefix=f"infer-{model}")
        self._loop_task: asyncio.Task[None] | None = None
        self._running: list[_Item] = []
        self._seconds_per_image = 0.1  # a guess until the first batch is measured

    def start(self) -> None:
        """On the event loop that will call `submit`."""
        self._loop_task = asyncio.get_running_loop().create_task(
            self._work(), name=f"batcher-{self._model}"
        )
        self._loop_task.add_done_callback(self._on_worker_end)

    @property
    def alive(self) -> bool:
        """False before `start`, after `aclose`, and when the worker died of a fault of its own."""
        return self._loop_task is not None and not self._loop_task.done()

    async def submit(self, image: UInt8Array, deadline: float | None = None) -> Labelled:
        """image: uint8 RGB [H,W,3]. deadline: a moment of `clock`, or None.

        Cancelling the awaiting task takes the image out of the queue, or drops its result.

        Raises: Overloaded, DeadlineExceeded, InferenceFailed, ShuttingDown.
        """
        if self._loop_task is None:
            raise ShuttingDown("this model is not started")
        if not self.alive:
            raise ShuttingDown() if self._loop_task.cancelled() else InferenceFailed()
        if len(self._queue) >= self._max_queue:
            self._observer.rejected("queue_full")
            raise Overloaded(self.retry_after_s())
        loop = asyncio.get_running_loop()
        now = self._clock()
        item = _Item(image, loop.create_future(), now, deadline)
        if deadline is not None:
            item.timer = loop.call_later(max(0.0, deadline - now), self._expire, item)
        self._queue[item] = None
        self._observe_depth()
        self._arrived.set()
        try:
            return await item.future
        finally:
            if item.timer is not None:
                item.timer.cancel()
            self._leave_queue(item)  # still there when cancelled or expired

    def retry_after_s(self) -> float:
        """Whole seconds, 1..60: how long the queue as it stands should take."""
        waiting = len(self._queue) + len(self._running)
        return float(min(60, max(1, math.ceil(waiting * self._seconds_per_image))))

    async def aclose(self) -> None:
        """Fails what is queued or running with ShuttingDown. Drain first to lose nothing."""
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait([self._loop_task])
        # Without waiting: a run cannot be interrupted, and its result has no taker.
        self._device.shutdown(wait=False, cancel_futures=True)

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            self._running = self._take()
            if not self._queue:
                self._arrived.clear()
            if self._running:
                self._observe_depth()
                await self._infer(self._running)
                self._running = []

    def _take(self) -> list[_Item]:
        """Out of the queue: the oldest image and the next ones of its shape, within the limits."""
        taken: list[_Item] = []
        for item in list(self._queue):
            if item.future.done():  # cancelled, its task has not yet come to leave the queue
                del self._queue[item]
                continue
            if item.deadline is not None and self._clock() >= item.deadline:
                del self._queue[item]
                self._expire(item)
                continue
            if taken and item.image.shape != taken[0].image.shape:
                continue
            height, width = item.image.shape[:2]
            if taken and (len(taken) + 1) * height * width > self._max_batch_pixels:
                break
            del self._queue[item]
            taken.append(item)
            if len(taken) == self._max_batch:
                break
        return taken

    async def _infer(self, items: list[_Item]) -> None:
        try:
            await self._run_and_settle(items)
        except Exception as error:
            if len(items) > 1:
                _log.warning(
                    "%s: a batch of %d failed, running its images one by one",
                    self._model,
                    len(items),
                    exc_info=error,
                )
                for item in items:
                    if not item.future.done():
                        await self._infer([item])
                return
            _log.error("%s: inference failed", self._model, exc_info=error)
            for item in items:
                _fail(item, InferenceFailed())

    async def _run_and_settle(self, items: list[_Item]) -> None:
        started = self._clock()
        label_maps = await asyncio.get_running_loop().run_in_executor(
            self._device, _run_stacked, self._run, [item.image for item in items]
        )
        infer_s = self._clock() - started
        # Half old, half new: follows a change of load within a few batches.
        self._seconds_per_image = (self._seconds_per_image + infer_s / len(items)) / 2
        self._observer.batch(self._model, len(items))
        for item, label_map in zip(items, label_maps, strict=True):
            if not item.future.done():  # its caller may have left, or its time run out
                queue_s = started - item.enqueued_s
                item.future.set_result(Labelled(label_map, queue_s, infer_s, len(items)))

    def _expire(self, item: _Item) -> None:
        """The deadline has come, wherever the image is."""
        _fail(
            item,
            DeadlineExceeded(
                "the deadline passed before the answer was ready: allow more time or send less"
            ),
        )

    def _leave_queue(self, item: _Item) -> None:
        if item in self._queue:
            del self._queue[item]
            self._observe_depth()

    def _observe_depth(self) -> None:
        self._observer.queue_depth(self._model, len(self._queue))

    def _on_worker_end(self, task: asyncio.Task[None]) -> None:
        """Nobody waits for ever on a worker that is gone."""
        error: Exception = ShuttingDown()
        if not task.cancelled():
            _log.critical("%s: the batcher died", self._model, exc_info=task.exception())
            error = InferenceFailed()
        for item in [*self._running, *self._queue]:
            _fail(item, error)
        self._running = []
        self._queue.clear()
        self._observe_depth()


def _fail(item: _Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)


def _run_stacked(run: Run, images: list[UInt8Array]) -> UInt8Array:
    """On the device thread. Raises ValueError when the answer is not one label map per image."""
    batch = images[0][None] if len(images) == 1 else np.stack(images)
    label_maps = run(batch)
    if label_maps.shape != batch.shape[:3]:
        raise ValueError(f"{batch.shape} in, {label_maps.shape} out")
    return label_maps
