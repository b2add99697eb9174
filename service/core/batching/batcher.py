"""Images and futures to batches: one queue for one model, and the instances that serve it.

An idle device starts at once; images gather only while it is busy. A lone image on an idle device
gets all of it (`alone`); otherwise each instance takes a batch as soon as it is free. Room is
reserved before an image is decoded, and refused when by the measured pace its turn would come too
late: those who are refused know at once, and those who are not are answered in time.

Time runs out, and callers leave, while queued and while the device is busy: each future is settled
alone and a late result for it is dropped. When a batch fails its images are run one by one, so that
one bad image costs its mates a little time and nothing else.

A thread that has decoded an image puts it into the queue, and a device thread that has finished
takes the next batch, themselves: over the event loop, which may have another picture's bytes in
hand, it would cost two changes of thread, and the device would be idle meanwhile though work waits.
So the queue, what is reserved and what runs are touched under a lock, for as long as it takes to
choose a batch. All else, and above all every future, is the event loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from service.core.batching.lanes import (
    LATE,
    Answer,
    Batch,
    Finish,
    Labelled,
    Lane,
    Place,
    Squeeze,
    Step,
    Ticket,
    Worker,
    expire,
    fail,
    one_thread,
    run_batch,
)
from service.core.batching.latency_model import Pace
from service.core.batching.policy import Queue
from service.core.types import Clock, Instance, Observer, Priority
from service.errors import DeadlineExceeded, InferenceFailed, Overloaded, ShuttingDown

UInt8Array = npt.NDArray[np.uint8]

AGE_CAP_S: Final = 0.1
"""About two inferences of an ordinary picture: see `service.core.batching.policy`."""

DEADLINE_SHARE: Final = 0.75
"""Of the time to a deadline, what wait and run may take by prediction. The rest is for decoding,
rendering, and a prediction that was too good: work that comes too late is lost for everybody."""

_log = logging.getLogger(__name__)


class Batcher:
    """`start`, then `reserve` and `submit` from any task of the same event loop, then `close`."""

    def __init__(
        self,
        instances: Sequence[Instance],
        *,
        model: str,
        max_batch: int,
        max_batch_pixels: int,
        max_queue: int,
        max_wait_s: float = math.inf,
        age_cap_s: float = AGE_CAP_S,
        observer: Observer,
        clock: Clock,
        thread: Callable[[str, Step], Worker] = one_thread,
    ) -> None:
        """instances: each has a thread of its own.

        model: the observer's label. max_batch, max_batch_pixels, age_cap_s: see `Queue`.
        max_queue: images reserved or waiting. max_wait_s:
        longest predicted wait for the device at which an image is still taken. thread: makes one,
        of its name and of what it does with a batch.
        """
        lanes = [
            Lane(instance, thread(f"infer-{model}-{n}", self._work))
            for n, instance in enumerate(instances)
        ]
        self._lanes = [lane for lane in lanes if not lane.instance.full_device]
        self._alone = next((lane for lane in lanes if lane.instance.full_device), None)
        self._model = model
        self._max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._observer = observer
        self._clock = clock
        self._queue: Queue[Ticket] = Queue(
            max_batch=max_batch,
            max_batch_pixels=max_batch_pixels,
            age_cap_s=age_cap_s,
        )
        self._again: deque[Ticket] = deque()  # of batches that failed, to be run one by one
        self._reserved = dict.fromkeys(Priority, 0)
        self._reserved_pixels = dict.fromkeys(Priority, 0)
        self._n_reserved = 0  # of all priorities
        self._idle = list(self._lanes)
        self._running: dict[Lane, Batch] = {}
        self._lock = threading.Lock()  # of the queue, _again, _reserved..., _idle and _running
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
        with self._lock:
            self._check(pixels, deadline, priority)
            self._reserved[priority] += 1
            self._reserved_pixels[priority] += pixels
            self._n_reserved += 1
        return Place(self.leave, pixels, priority)

    def leave(self, place: Place) -> None:
        """Of a place's holder."""
        with self._lock:
            self._leave(place)

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
        if place is None and self._end is None:
            self._check(image.shape[0] * image.shape[1], deadline, priority)
        ticket = self.ticket(deadline, place, priority)
        self.put(ticket, image, squeeze, finish)
        return await self.answer(ticket)

    def ticket(
        self,
        deadline: float | None,
        place: Place | None,
        priority: Priority = Priority.NORMAL,
    ) -> Ticket:
        """For an image that `put` will bring, or for the error by which it does not come, which
        whoever was to bring it sets as the future's. Then wait for its `answer`.

        Raises: DeadlineExceeded, InferenceFailed, ShuttingDown.
        """
        if self._end is not None or self._loop is None:
            raise self._end or ShuttingDown()
        left_s = math.inf if deadline is None else deadline - self._clock()
        if left_s <= 0:
            raise DeadlineExceeded(LATE)
        ticket = Ticket(
            priority if place is None else place.priority,
            deadline,
            place,
            self._loop.create_future(),
        )
        if deadline is not None:
            ticket.timer = self._loop.call_later(left_s, expire, ticket)
        return ticket

    def put(
        self,
        ticket: Ticket,
        image: UInt8Array,
        squeeze: Squeeze | None = None,
        finish: Finish | None = None,
    ) -> None:
        """The image is there, see `submit`. From any thread; when nobody waits for it any more
        nothing happens."""
        ticket.squeeze, ticket.finish = squeeze, finish
        try:
            with self._lock:
                if ticket.future.done():
                    return
                if ticket.place is not None:
                    self._leave(ticket.place)
                now = self._clock()
                if self._end is not None:
                    self._call_soon(fail, ticket, type(self._end)())
                    return
                if ticket.deadline is not None and now >= ticket.deadline:
                    self._call_soon(expire, ticket)  # its timer is late
                    return
                ticket.came(image, now, squeeze is not None)
                self._queue.add(ticket)
                begun = self._choose()
                self._observe_depth()
        except BaseException as error:
            self._call_soon(self._die, error, [ticket])
        else:
            self._start(begun)

    async def answer(self, ticket: Ticket) -> Labelled:
        """Raises: as `submit`."""
        try:
            return await ticket.future
        except BaseException:
            with self._lock:  # after which `put` sees that nobody waits
                if self._queue.remove(ticket):
                    self._observe_depth()
            raise
        finally:
            if ticket.timer is not None:
                ticket.timer.cancel()

    def wait_s(self, priority: Priority = Priority.NORMAL) -> float:
        """Predicted wait for the device of an image that would come now; 0 when it is idle."""
        lanes, running = len(self._lanes), list(self._running.values())
        if self._waiting() + len(running) < lanes:
            return 0.0
        now = self._clock()
        work = 0.0
        for batch in running:
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
            lane.thread.stop()

    def join(self) -> None:
        """After `close`: returns when the device threads have ended. Not on the event loop."""
        for lane in self._all_lanes():
            lane.thread.join()

    def _all_lanes(self) -> list[Lane]:
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
        return len(self._queue) + len(self._again) + self._n_reserved

    def _full(self) -> bool:
        return self._waiting() >= self._max_queue + len(self._lanes) - len(self._running)

    def _leave(self, place: Place) -> None:
        """In the lock."""
        if place.held:
            place.held = False
            self._reserved[place.priority] -= 1
            self._reserved_pixels[place.priority] -= place.pixels
            self._n_reserved -= 1

    def _choose(self) -> list[Batch]:
        """A batch for every free instance, while there are any; to be started. In the lock."""
        begun: list[Batch] = []
        if not self._queue and not self._again:
            return begun
        alone = self._alone
        if (
            alone is not None
            and not self._running
            and len(self._queue) == 1
            and not self._again
            and not self._n_reserved
            and next(iter(self._queue)).squeeze is None
            and (items := self._take())
        ):
            begun.append(self._begin(alone, items))
        # A run of `alone` counts as an instance: it has its cores.
        while len(self._running) < len(self._lanes) and (items := self._take()):
            begun.append(self._begin(self._idle.pop(), items))
        return begun

    def _take(self) -> list[Ticket]:
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
                    self._call_soon(expire, item)  # its timer is late
                elif not item.future.done():
                    left.append(item)
            if left:
                return left
        return []

    def _begin(self, lane: Lane, items: list[Ticket]) -> Batch:
        """In the lock."""
        pixels = len(items) * items[0].pixels
        batch = Batch(lane, items, pixels, self._clock(), lane is self._alone)
        self._running[lane] = batch
        return batch

    def _start(self, batches: Sequence[Batch]) -> None:
        """Not in the lock, for the thread may be fast."""
        for batch in batches:
            try:
                batch.lane.thread.put(batch)
            except BaseException as error:
                self._call_soon(self._die, error, batch.items)

    def _work(self, batch: Batch) -> Batch | None:
        """A `Step`, on the lane's thread."""
        if self._end is not None:
            return None
        answers: Sequence[Answer] = ()
        failure: BaseException | None = None
        try:
            answers = run_batch(batch.lane, batch.items)
        except BaseException as error:
            failure = error
        ended_s = self._clock()
        try:
            with self._lock:
                following, others = self._follow(batch, failure)
        except BaseException as error:
            self._call_soon(self._die, error, batch.items)
            return None
        self._call_soon(self._finished, batch, answers, failure, ended_s)
        self._start(others)
        return following

    def _follow(
        self, batch: Batch, failure: BaseException | None
    ) -> tuple[Batch | None, list[Batch]]:
        """What this lane does next, and what others are to begin. In the lock."""
        if self._end is not None:
            return None, []
        del self._running[batch.lane]
        if failure is not None and len(batch.items) > 1:
            self._again.extend(batch.items)
        following = None
        if not batch.alone:
            if items := self._take():
                following = self._begin(batch.lane, items)
            else:
                self._idle.append(batch.lane)
        others = self._choose()
        self._observe_depth()
        return following, others

    def _finished(
        self,
        batch: Batch,
        answers: Sequence[Answer],
        failure: BaseException | None,
        ended_s: float,
    ) -> None:
        try:
            if failure is None:
                self._succeeded(batch, answers, ended_s - batch.started_s)
            elif len(batch.items) > 1:
                _log.warning(
                    "%s: a batch of %d failed, running its images one by one",
                    self._model,
                    len(batch.items),
                    exc_info=failure,
                )
            else:
                _log.error("%s: inference failed", self._model, exc_info=failure)
                fail(batch.items[0], InferenceFailed())
        except BaseException as error:
            self._die(error, batch.items)

    def _succeeded(self, batch: Batch, answers: Sequence[Answer], infer_s: float) -> None:
        size = len(batch.items)
        pace = self._pace_alone if batch.alone else self._pace
        pace.saw(batch.pixels, size, infer_s)
        self._observer.batch(self._model, size)
        for item, (label_map, scores, finished) in zip(batch.items, answers, strict=True):
            if not item.future.done():  # its caller may have left, or its time run out
                queue_s = batch.started_s - item.enqueued_s
                item.future.set_result(
                    Labelled(label_map, queue_s, infer_s, size, scores, finished)
                )

    def _call_soon(self, step: Callable[..., None], *args: object) -> None:
        """On the event loop, from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it was closed meanwhile
                self._loop.call_soon_threadsafe(step, *args)

    def _die(self, error: BaseException, lost: Sequence[Ticket]) -> None:
        """Nobody waits for ever on a batcher that has failed: a fault of its own ends it."""
        _log.critical("%s: the batcher died", self._model, exc_info=error)
        self._finish(InferenceFailed(), lost)

    def _finish(self, error: Exception, lost: Sequence[Ticket] = ()) -> None:
        """Answers everybody, `lost` included, and takes nothing more."""
        items = list(lost)
        with self._lock:
            if self._end is None:
                self._end = error
                for batch in self._running.values():
                    items += batch.items
                items += (*self._again, *self._queue)
                self._running.clear()
                self._again.clear()
                self._queue.clear()
        for item in items:
            fail(item, type(error)())
        with self._lock:
            self._observe_depth()

    def _observe_depth(self) -> None:
        """In the lock, so that the last one told is the last there was."""
        self._observer.queue_depth(self._model, len(self._queue))
