"""Images and futures to batches: one queue for one model, and the instances that serve it.

An idle device starts at once; images gather only while it is busy. A lone image on an idle device
gets all of it (`alone`); otherwise each instance takes a batch as soon as it is free. Room is
reserved before an image is decoded, and refused when by the measured pace its turn would come too
late: those who are refused know at once, and those who are not are answered in time.

Time runs out, and callers leave, while queued and while the device is busy: each future is settled
alone and a late result for it is dropped. When a batch fails its images are run one by one, so that
one bad image costs its mates a little time and nothing else. Images of several sizes share a batch
where the network can do that: padded, and each answered as if alone.

A device thread that has finished takes the next batch itself: over the event loop, which may have a
picture's bytes in hand, the device would be idle meanwhile though work waits. So the queue and what
runs are touched under a lock, by a thread for as long as it takes to choose a batch. All else, and
above all every future, is the event loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from service.core.cores import DEVICE_NICE, yield_to_event_loop
from service.core.frames import padded_pixels, stack
from service.core.pace import Pace
from service.core.queue import Queue, Queued
from service.core.types import Clock, DeviceRun, Observer, Priority, RaggedRun, Run, ScoredRun
from service.errors import DeadlineExceeded, InferenceFailed, Overloaded, ShuttingDown

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]
Scores = npt.NDArray[Any]

Squeeze = Callable[[Float32Array, UInt8Array], Scores]
"""Logits float32 [C,H,W] and their label map uint8 [H,W] -> what is wanted of them.

Called on the device's thread, though that delays the next batch a little: logits that waited to be
squeezed elsewhere would take a dozen times the memory of the pictures.
"""

Finish = Callable[[UInt8Array], Any]
"""A label map uint8 [H,W] -> what the reply needs of it. Called on the device's thread, so it must
be quick: it saves handing the label map to another thread, which costs more than packing it."""

AGE_CAP_S: Final = 0.1
"""About two inferences of an ordinary picture: see `service.core.queue`."""

DEADLINE_SHARE: Final = 0.75
"""Of the time to a deadline, what wait and run may take by prediction. The rest is for decoding,
rendering, and a prediction that was too good: work that comes too late is lost for everybody."""

_LATE: Final = "the deadline passed before the answer was ready: allow more time or send less"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Labelled:
    """`label_map` uint8 [H,W]; seconds waited, and seconds on the device with the whole batch.

    scores: what `squeeze` made of the logits, [...,H,W]; None without it. finished: what `finish`
    made of the label map.
    """

    label_map: UInt8Array
    queue_s: float
    infer_s: float
    batch_size: int
    scores: Scores | None = None
    finished: Any = None


@dataclass(eq=False, slots=True)
class _Item(Queued):
    future: asyncio.Future[Labelled]
    squeeze: Squeeze | None
    finish: Finish | None
    timer: asyncio.TimerHandle | None = field(default=None)

    @property
    def kind(self) -> Hashable:
        return self.image.shape, self.squeeze is None

    @property
    def mixes(self) -> bool:
        return self.squeeze is None


@dataclass(eq=False, slots=True)
class _Lane:
    """One instance of the network and the one thread that calls it."""

    run: Run
    scored: ScoredRun | None
    thread: Executor
    ragged: RaggedRun | None = None


@dataclass(eq=False, slots=True)
class _Batch:
    lane: _Lane
    items: list[_Item]
    pixels: int
    started_s: float
    alone: bool


_Answer = tuple[UInt8Array, Scores | None, Any]


class Place:
    """Room in the queue for one image that is still being decoded; leave it or submit with it."""

    __slots__ = ("_batcher", "pixels", "priority")

    def __init__(self, batcher: Batcher, pixels: int, priority: Priority) -> None:
        self._batcher: Batcher | None = batcher
        self.pixels = pixels
        self.priority = priority

    def release(self) -> None:
        """May be called again."""
        if self._batcher is not None:
            self._batcher._release(self)
            self._batcher = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


def one_thread(name: str) -> Executor:
    return ThreadPoolExecutor(
        1,
        thread_name_prefix=name,
        initializer=yield_to_event_loop,
        initargs=(DEVICE_NICE,),
    )


class Batcher:
    """`start`, then `reserve` and `submit` from any task of the same event loop, then `close`."""

    def __init__(
        self,
        instances: Sequence[Run],
        *,
        alone: Run | None = None,
        scored: Sequence[ScoredRun] = (),
        ragged: Sequence[RaggedRun] = (),
        model: str,
        max_batch: int,
        max_batch_pixels: int,
        max_padding: float = 0.0,
        max_queue: int,
        max_wait_s: float = math.inf,
        age_cap_s: float = AGE_CAP_S,
        observer: Observer,
        clock: Clock,
        thread: Callable[[str], Executor] = one_thread,
    ) -> None:
        """instances, alone, scored, ragged: see `Network`; each instance has a thread of its own.

        model: the observer's label. max_batch, max_batch_pixels, age_cap_s: see `Queue`, and so
        max_padding, for networks with `ragged`. max_queue: images reserved or waiting. max_wait_s:
        longest predicted wait for the device at which an image is still taken. thread: an executor
        of one thread, by its name.
        """
        self._lanes = [
            _Lane(
                run,
                scored[n] if scored else None,
                thread(f"infer-{model}-{n}"),
                ragged[n] if ragged else None,
            )
            for n, run in enumerate(instances)
        ]
        self._alone = None if alone is None else _Lane(alone, None, thread(f"infer-{model}-alone"))
        self._model = model
        self._max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._observer = observer
        self._clock = clock
        self._queue: Queue[_Item] = Queue(
            max_batch=max_batch,
            max_batch_pixels=max_batch_pixels,
            age_cap_s=age_cap_s,
            max_padding=max_padding if ragged else 0.0,
        )
        self._again: deque[_Item] = deque()  # of batches that failed, to be run one by one
        self._reserved = dict.fromkeys(Priority, 0)
        self._reserved_pixels = dict.fromkeys(Priority, 0)
        self._idle = list(self._lanes)
        self._running: dict[_Lane, _Batch] = {}
        self._lock = threading.Lock()  # of the queue, _again, _idle and _running
        self._pace = Pace()
        self._pace_alone = Pace()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Exception | None = ShuttingDown("this model is not started")

    def start(self) -> None:
        """On the event loop that will call `submit`."""
        self._loop = asyncio.get_running_loop()
        self._end = None

    def expect(self, pixels: int, seconds: float) -> None:
        """What one image took in the warm-up: a first idea of the pace."""
        self._pace.saw(pixels, 1, seconds)

    @property
    def alive(self) -> bool:
        """False before `start`, after `close`, and when it died of a fault of its own."""
        return self._end is None

    def check(self, deadline: float | None = None, priority: Priority = Priority.NORMAL) -> None:
        """Whether there is room now, of which nothing is taken.

        Raises: Overloaded, InferenceFailed, ShuttingDown.
        """
        self._check(0, deadline, priority)

    def crowded(self, deadline: float | None = None, priority: Priority = Priority.NORMAL) -> bool:
        """Whether `check` would raise Overloaded."""
        return self._full() or self._too_late(0, deadline, priority)

    def reserve(
        self, pixels: int, deadline: float | None = None, priority: Priority = Priority.NORMAL
    ) -> Place:
        """Before the decode. pixels: height times width, as the picture's header says.

        Raises: Overloaded when the queue is full, or when by the pace of the last runs the image
        would wait longer than `max_wait_s` or not be labelled by its deadline; InferenceFailed,
        ShuttingDown.
        """
        self._check(pixels, deadline, priority)
        self._reserved[priority] += 1
        self._reserved_pixels[priority] += pixels
        return Place(self, pixels, priority)

    async def submit(
        self,
        image: UInt8Array,
        deadline: float | None = None,
        place: Place | None = None,
        priority: Priority = Priority.NORMAL,
        squeeze: Squeeze | None = None,
        finish: Finish | None = None,
    ) -> Labelled:
        """image: uint8 RGB [H,W,3]. deadline: a moment of `clock`, or None.

        place: as reserved for this image, whose priority then counts; without one it is reserved
        now. squeeze: for `scores`; the network must have `scored`. finish: for `finished`.
        Cancelling the awaiting task takes the image out of the queue, or drops its result.

        Raises: Overloaded, DeadlineExceeded, InferenceFailed, ShuttingDown.
        """
        if self._end is not None or self._loop is None:
            raise self._end or ShuttingDown()
        if place is None:
            self._check(image.shape[0] * image.shape[1], deadline, priority)
        else:
            priority = place.priority
            place.release()
        now = self._clock()
        if deadline is not None and now >= deadline:
            raise DeadlineExceeded(_LATE)
        item = _Item(image, priority, now, deadline, self._loop.create_future(), squeeze, finish)
        if deadline is not None:
            item.timer = self._loop.call_later(deadline - now, _expire, item)
        with self._lock:
            self._queue.add(item)
        self._guarded(self._dispatch)
        try:
            return await item.future
        finally:
            if item.timer is not None:
                item.timer.cancel()
            with self._lock:
                waited = self._queue.remove(item)  # cancelled or expired
            if waited:
                self._observe_depth()

    def wait_s(self, priority: Priority = Priority.NORMAL) -> float:
        """Predicted wait for the device of an image that would come now; 0 when it is idle."""
        lanes = len(self._lanes)
        if self._waiting() + len(self._running) < lanes:
            return 0.0
        now = self._clock()
        work = 0.0
        for batch in self._running.values():
            pace = self._pace_alone if batch.alone else self._pace
            takes = pace.seconds(batch.pixels, len(batch.items))
            work += max(0.0, takes - (now - batch.started_s))
        pixels = self._queue.pixels(priority)
        ahead = len(self._queue)
        for p in Priority:
            if p <= priority:
                pixels += self._reserved_pixels[p]
                ahead += self._reserved[p]
        pace = self._pace if self._pace.known else self._pace_alone
        return (work + pace.seconds(pixels, ahead)) / lanes

    def retry_after_s(self) -> float:
        """Whole seconds, 1..60: how long the work at hand should take."""
        return float(min(60, max(1, math.ceil(self.wait_s(Priority.LOW)))))

    def close(self) -> None:
        """Fails what is queued or running with ShuttingDown. Drain first to lose nothing."""
        self._finish(ShuttingDown())
        # Without waiting: a run cannot be interrupted, and its result has no taker.
        for lane in self._all_lanes():
            lane.thread.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """After `close`: returns when the device threads have ended. Not on the event loop."""
        for lane in self._all_lanes():
            lane.thread.shutdown()

    def _all_lanes(self) -> list[_Lane]:
        return [*self._lanes, *([self._alone] if self._alone else [])]

    def _check(self, pixels: int, deadline: float | None, priority: Priority) -> None:
        if self._end is not None:
            raise self._end
        if self._full():
            self._observer.rejected("queue_full")
            raise Overloaded(self.retry_after_s())
        if self._too_late(pixels, deadline, priority):
            self._observer.rejected("too_late")
            raise Overloaded(self.retry_after_s())

    def _too_late(self, pixels: int, deadline: float | None, priority: Priority) -> bool:
        wait_s = self.wait_s(priority)
        # An idle device takes whatever comes: should the pace be wrong, that is how it learns.
        if not wait_s or wait_s > self._max_wait_s:
            return wait_s > 0
        needs_s = wait_s + self._pace.seconds(pixels)
        return deadline is not None and needs_s > DEADLINE_SHARE * (deadline - self._clock())

    def _waiting(self) -> int:
        return len(self._queue) + len(self._again) + sum(self._reserved.values())

    def _full(self) -> bool:
        return self._waiting() >= self._max_queue + len(self._lanes) - len(self._running)

    def _release(self, place: Place) -> None:
        self._reserved[place.priority] -= 1
        self._reserved_pixels[place.priority] -= place.pixels

    def _dispatch(self) -> None:
        """Gives every free instance a batch, while there are any."""
        begun = []
        with self._lock:
            alone = self._alone
            if (
                alone is not None
                and not self._running
                and len(self._queue) == 1
                and not self._again
                and not any(self._reserved.values())
                and next(iter(self._queue)).squeeze is None
                and (items := self._take())
            ):
                begun.append(self._begin(alone, items))
            # A run of `alone` counts as an instance: it has its cores.
            while len(self._running) < len(self._lanes) and (items := self._take()):
                begun.append(self._begin(self._idle.pop(), items))
        for batch in begun:
            self._start(batch)
        self._observe_depth()

    def _take(self) -> list[_Item]:
        """The next batch, less those who left or whose time is over; empty when nothing waits.

        In the lock.
        """
        while self._again:
            item = self._again.popleft()
            if not item.future.done():
                return [item]
        while items := self._queue.take(now := self._clock(), self._pace.seconds):
            left = []
            for item in items:
                if item.deadline is not None and now >= item.deadline:
                    self._call_soon(_expire, item)  # its timer is late
                elif not item.future.done():
                    left.append(item)
            if left:
                return left
        return []

    def _begin(self, lane: _Lane, items: list[_Item]) -> _Batch:
        """In the lock."""
        pixels = padded_pixels([item.image for item in items])
        batch = _Batch(lane, items, pixels, self._clock(), lane is self._alone)
        self._running[lane] = batch
        return batch

    def _start(self, batch: _Batch) -> None:
        """Not in the lock: should the run be over already, `_ended` is called from here."""
        items = batch.items
        work = batch.lane.thread.submit(
            _run,
            batch.lane,
            [item.image for item in items],
            [(item.squeeze, item.finish) for item in items],
        )
        work.add_done_callback(partial(self._ended, batch))

    def _ended(self, batch: _Batch, work: Future[list[_Answer]]) -> None:
        """On the device thread, or wherever the executor was shut down."""
        ended_s = self._clock()
        try:
            following = None if batch.alone else self._follow(batch, work)
        except BaseException as error:
            self._call_soon(self._guarded, self._died, batch, error)
            return
        self._call_soon(self._guarded, self._finished, batch, work, ended_s, following is not None)
        if following is not None:
            try:
                self._start(following)
            except RuntimeError as error:  # the executor was shut down meanwhile
                self._call_soon(self._guarded, self._died, following, error)

    def _follow(self, batch: _Batch, work: Future[list[_Answer]]) -> _Batch | None:
        """What this instance does next."""
        with self._lock:
            if self._end is not None:
                return None
            if len(batch.items) > 1 and not work.cancelled() and work.exception() is not None:
                self._again.extend(batch.items)
            items = self._take()
            return self._begin(batch.lane, items) if items else None

    def _finished(
        self, batch: _Batch, work: Future[list[_Answer]], ended_s: float, goes_on: bool
    ) -> None:
        """goes_on: the instance has its next batch already."""
        if not goes_on:
            with self._lock:
                del self._running[batch.lane]
                if not batch.alone:
                    self._idle.append(batch.lane)
        items, infer_s = batch.items, ended_s - batch.started_s
        error = work.exception()
        if error is None:
            pace = self._pace_alone if batch.alone else self._pace
            pace.saw(batch.pixels, len(items), infer_s)
            self._observer.batch(self._model, len(items))
            for item, (label_map, scores, finished) in zip(items, work.result(), strict=True):
                if not item.future.done():  # its caller may have left, or its time run out
                    queue_s = batch.started_s - item.enqueued_s
                    labelled = Labelled(label_map, queue_s, infer_s, len(items), scores, finished)
                    item.future.set_result(labelled)
        elif len(items) > 1:
            _log.warning(
                "%s: a batch of %d failed, running its images one by one",
                self._model,
                len(items),
                exc_info=error,
            )
        else:
            _log.error("%s: inference failed", self._model, exc_info=error)
            _fail(items[0], InferenceFailed())
        self._dispatch()

    def _died(self, batch: _Batch, error: BaseException) -> None:
        """Raises: `error`, of a device thread, to be seen to by `_guarded`."""
        raise error

    def _call_soon(self, step: Callable[..., None], *args: object) -> None:
        """On the event loop, from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it was closed meanwhile
                self._loop.call_soon_threadsafe(step, *args)

    def _guarded(self, step: Callable[..., None], *args: object) -> None:
        """Nobody waits for ever on a batcher that has failed: a fault of its own ends it."""
        if self._end is not None:
            return
        try:
            step(*args)
        except BaseException as error:
            _log.critical("%s: the batcher died", self._model, exc_info=error)
            batch = args[0] if args and isinstance(args[0], _Batch) else None
            self._finish(InferenceFailed(), batch.items if batch else ())

    def _finish(self, error: Exception, lost: Sequence[_Item] = ()) -> None:
        """Answers everybody, `lost` included, and takes nothing more."""
        if self._end is not None:
            return
        with self._lock:
            self._end = error
            running = [item for batch in self._running.values() for item in batch.items]
            items = (*lost, *running, *self._again, *self._queue)
            self._running.clear()
            self._again.clear()
            self._queue.clear()
        for item in items:
            _fail(item, type(error)())
        self._observe_depth()

    def _observe_depth(self) -> None:
        self._observer.queue_depth(self._model, len(self._queue))


def _expire(item: _Item) -> None:
    """The deadline has come, wherever the image is."""
    _fail(item, DeadlineExceeded(_LATE))


def _fail(item: _Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)


def _run(
    lane: _Lane, images: list[UInt8Array], makers: list[tuple[Squeeze | None, Finish | None]]
) -> list[_Answer]:
    """On a device thread. Raises ValueError when the answer is not one label map per image."""
    if len(images) == 1:
        batch = images[0][None]
    else:
        batch = lane.run.stack(images) if isinstance(lane.run, DeviceRun) else stack(images)
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    logits: Float32Array | None = None
    if len(set(sizes)) > 1:
        if lane.ragged is None:
            raise ValueError("a network for batches of one size was given several")
        label_maps = lane.ragged(batch, sizes)
    elif makers[0][0] is None:
        label_maps = lane.run(batch)
    elif lane.scored is None:
        raise ValueError("a network without logits was asked for them")
    else:
        label_maps, logits = lane.scored(batch)
    if label_maps.shape != batch.shape[:3]:
        raise ValueError(f"{batch.shape} in, {label_maps.shape} out")
    if logits is not None and logits.shape[2:] != batch.shape[1:3]:
        raise ValueError(f"{batch.shape} in, logits {logits.shape} out")
    answers = []
    for n, (whole, (height, width), (squeeze, finish)) in enumerate(
        zip(label_maps, sizes, makers, strict=True)
    ):
        label_map = whole[:height, :width]
        scores = None if squeeze is None or logits is None else squeeze(logits[n], label_map)
        answers.append((label_map, scores, None if finish is None else finish(label_map)))
    return answers
