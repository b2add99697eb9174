"""Holds what waits for one model: room is reserved, images come, instances take batches of them.

An idle device starts at once; images gather only while it is busy. A lone image on an idle device
gets all of it (`Instance.full_device`); otherwise each instance takes a batch as soon as it is
free. Room is reserved before an image is decoded, and refused when by the latency model its turn
would come too late: those who are refused know at once, and those who are not are answered in time.

Time runs out, and callers leave, while queued and while the device is busy: each future is settled
alone and a late result for it is dropped. When a batch fails its images are run one by one, so that
one bad image costs its mates a little time and nothing else.

A thread that has decoded an image puts it into the queue, and a device thread that has finished
takes the next batch, themselves: over the event loop, which may have another image's bytes in hand,
it would cost two changes of thread, and the device would be idle meanwhile though work waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from copy import copy
from typing import Final

from service.core.batching.policy import (
    AGE_CAP_S,
    ROOM_FOR_OTHERS,
    Batch,
    BatchPolicy,
    InferenceRequest,
    InferenceResult,
    LatencyModel,
    Postprocess,
    result_by,
    settle,
    settle_now,
)
from service.core.types import Clock, Observer, Priority, UInt8Array
from service.errors import DeadlineExceeded, InferenceFailed, Overloaded, ShuttingDown

DEADLINE_SHARE: Final = 0.75
"""Wait and run may take this share of the time to a deadline. The rest is for decoding, encoding,
and predictions that were too good: work that comes too late is lost for everybody."""

_log = logging.getLogger(__name__)


def leaves_room(own: int, new: int, held: int, bound: int) -> bool:
    """Tells whether a client that holds `own` may have `new` more where `held` of `bound` is: all
    that is free if it holds nothing, else only so much that others find room, too."""
    return held + new <= bound and (not own or own + new <= ROOM_FOR_OTHERS * (bound - held))


class BatchQueue:
    """Forms batches for one model's instances. Any thread may call it.

    It owns the only lock; its private methods are called while it is held.
    """

    def __init__(
        self,
        *,
        model: str,
        version: str = "",
        instances: int,
        full_device: bool = False,
        max_batch: int,
        max_batch_pixels: int,
        max_queue: int,
        max_wait_s: float = math.inf,
        age_cap_s: float = AGE_CAP_S,
        observer: Observer,
        clock: Clock,
    ) -> None:
        """Opens the queue.

        model, version: for the observer. instances: how many share the device. full_device:
        whether there is one more, which takes all of the device for a lone image.

        max_batch, max_batch_pixels, age_cap_s: see `BatchPolicy`. max_queue: images reserved or
        waiting. max_wait_s: longest predicted wait for the device at which an image is still taken.
        """
        self._model = model
        self._version = version
        self._instances = instances
        self._has_full_device = full_device
        self._max_queue = max_queue
        self._max_wait_s = max_wait_s
        self._observer = observer
        self._clock = clock
        self._policy = BatchPolicy(
            max_batch=max_batch, max_batch_pixels=max_batch_pixels, age_cap_s=age_cap_s
        )
        self._retries: deque[InferenceRequest] = deque()  # of batches that failed
        self._reserved: set[InferenceRequest] = set()
        self._running: set[Batch] = set()
        self._latency = LatencyModel()
        self._full_device_latency = LatencyModel()
        self._error: Exception | None = None  # why it is closed
        self.stuck = False
        """Tells of a run that is busy for far longer than it may; set by the watchdog."""
        self._lock = threading.Lock()
        self._shared_instance = threading.Condition(self._lock)
        self._full_device = threading.Condition(self._lock)

    def seed(self, pixels: int, seconds: float) -> None:
        """Tells what one image took in the warm-up."""
        self._latency.update(pixels, 1, seconds)

    @property
    def alive(self) -> bool:
        """Tells whether it takes requests: not once it is closed, nor while a run is stuck."""
        return self._error is None and not self.stuck

    @property
    def closed(self) -> bool:
        """Tells whether it has ended, by `close` or a fault of its own."""
        return self._error is not None

    @contextlib.contextmanager
    def running(self) -> Iterator[Collection[Batch]]:
        """Lends the batches that instances run; none of them ends meanwhile."""
        with self._lock:
            yield self._running

    def check(
        self, deadline: float | None = None, priority: Priority = Priority.NORMAL, client: str = ""
    ) -> None:
        """Finds out whether there is room now, and takes none. Raises: as `reserve`."""
        with self._lock:
            self._check(self.request(deadline, priority, client))

    def reserve(
        self,
        pixels: int,
        deadline: float | None = None,
        priority: Priority = Priority.NORMAL,
        client: str = "",
    ) -> InferenceRequest:
        """Takes room before the decode, on the event loop; `put` or `release` it.

        pixels: height times width, as the image's header says. deadline: a moment of the clock.
        client: who takes turns with others, and leaves them room.

        Raises: Overloaded when the queue is full, or when by the latency model the image would wait
        longer than `max_wait_s` or not be labelled by its deadline; InferenceFailed, ShuttingDown.
        """
        request = self.request(deadline, priority, client)
        request.pixels = pixels
        with self._lock:
            self._check(request)
            self._reserved.add(request)
        return request

    def request(self, deadline: float | None, priority: Priority, client: str) -> InferenceRequest:
        """Makes a request without room of its own, for a part of an image that has some."""
        future = asyncio.get_running_loop().create_future()
        return InferenceRequest(priority, deadline, future, client)

    def release(self, request: InferenceRequest) -> None:
        """Gives up what is still reserved; may be called again."""
        with self._lock:
            self._reserved.discard(request)

    def put(
        self,
        request: InferenceRequest,
        image: UInt8Array,
        postprocess: Postprocess | None = None,
        *,
        wants_logits: bool = False,
    ) -> None:
        """Queues an image, uint8 RGB [H,W,3]; nothing happens when nobody waits for it any more.

        wants_logits: only where the network has them.
        """
        try:
            with self._lock:
                self._reserved.discard(request)
                now = self._clock()
                if request.future.done():
                    return
                if self._error is not None:
                    settle(request.future, copy(self._error))
                elif request.deadline is not None and now >= request.deadline:
                    settle(request.future, DeadlineExceeded())  # its timer is late
                else:
                    request.set_image(image, now, postprocess, wants_logits)
                    self._policy.add(request)
                    self._observe_depth()
                    self._wake()
        except BaseException as error:
            self.die(error, [request])

    async def result(self, request: InferenceRequest) -> InferenceResult:
        """Waits for the answer until the deadline.

        Cancelling the awaiting task takes the image out of the queue, or drops its result.

        Raises: DeadlineExceeded, InferenceFailed, ShuttingDown.
        """
        try:
            return await result_by(request.future, request.deadline, self._clock)
        except BaseException:
            with self._lock:  # after which `put` sees that nobody waits
                if self._policy.remove(request):
                    self._observe_depth()
            raise

    def next_batch(self, *, full_device: bool = False) -> Batch | None:
        """Waits for what an instance is to run next; None once the queue is closed."""
        awaited = self._full_device if full_device else self._shared_instance
        with self._lock:
            while self._error is None:
                if (batch := self._take(full_device)) is not None:
                    return batch
                awaited.wait()
        return None

    def finish(self, batch: Batch, results: Sequence[InferenceResult], device_s: float) -> None:
        """Answers a batch's requests. device_s: how long it kept its instance busy."""
        with self._lock:
            self._running.discard(batch)
            batch.latency.update(batch.pixels, len(batch.requests), device_s)
        loop = batch.requests[0].future.get_loop()
        with contextlib.suppress(RuntimeError):  # it was closed meanwhile
            loop.call_soon_threadsafe(self._deliver, batch, results)

    def retry_singly(self, batch: Batch, error: BaseException) -> None:
        """Takes back a batch that failed: each image runs alone, and one that did is answered."""
        alone = len(batch.requests) == 1 or batch.stuck
        if batch.stuck:  # and has been answered
            _log.warning("%s: the run that was stuck has ended", self._model)
        elif alone:
            _log.error("%s: inference failed", self._model, exc_info=error)
            settle(batch.requests[0].future, InferenceFailed())
        else:
            text = "%s: a batch of %d failed, running its images one by one"
            _log.warning(text, self._model, len(batch.requests), exc_info=error)
        with self._lock:
            self._running.discard(batch)
            if self._error is None and not alone:
                self._retries.extend(batch.requests)
                self._wake()

    def retry_after_s(self) -> float:
        """Predicts how long the work at hand should take, in whole seconds from 1 to 60."""
        with self._lock:
            return self._retry_after_s()

    def close(self, error: Exception | None = None, lost: Iterable[InferenceRequest] = ()) -> None:
        """Answers everybody with an error, and takes nothing more.

        error: ShuttingDown by default. lost: requests to be answered that are in no list here.
        Runs are told to end; their results have no taker. Drain first to lose nothing.
        """
        requests = list(lost)
        with self._lock:
            if self._error is None:
                self._error = error or ShuttingDown()
                for batch in self._running:
                    requests += batch.requests
                    batch.terminate()
                requests += (*self._retries, *self._policy)
                self._running.clear()
                self._retries.clear()
                self._policy.clear()
            ended = self._error
            self._shared_instance.notify_all()
            self._full_device.notify_all()
        for request in requests:
            settle(request.future, copy(ended))
        with self._lock, contextlib.suppress(Exception):  # a faulty observer may be why it ends
            self._observe_depth()

    def die(self, error: BaseException, lost: Iterable[InferenceRequest] = ()) -> None:
        """Ends it for a fault of its own: nobody waits for ever on a queue that has failed."""
        _log.critical("%s: its queue died", self._model, exc_info=error)
        self.close(InferenceFailed(), lost)

    def _deliver(self, batch: Batch, results: Sequence[InferenceResult]) -> None:
        """Settles on the event loop what its callers still wait for; needs no lock."""
        requests = batch.requests
        try:
            self._observer.batch(self._model, len(requests), batch.closed)
            for request, result in zip(requests, results, strict=True):
                settle_now(request.future, result)
        except BaseException as error:
            self.die(error, requests)

    def _check(self, new: InferenceRequest) -> None:
        if self._error is not None:
            raise copy(self._error)
        held, bound = self._waiting(), self._max_queue + self._instances - len(self._running)
        own = self._policy.count(new.client) + sum(r.client == new.client for r in self._reserved)
        if not leaves_room(own, 1, held, bound):
            self._observer.rejected("queue_full")
        elif self._is_too_late(new):
            self._observer.rejected("too_late")
        else:
            return
        raise Overloaded(self._retry_after_s())

    def _is_too_late(self, new: InferenceRequest) -> bool:
        wait_s = self._wait_s(new)
        # An idle device takes whatever comes: a prediction that is wrong is corrected by the run.
        if not wait_s or wait_s > self._max_wait_s:
            return wait_s > 0
        left_s = math.inf if new.deadline is None else new.deadline - self._clock()
        return wait_s + self._latency.seconds(new.pixels) > DEADLINE_SHARE * left_s

    def _waiting(self) -> int:
        return len(self._policy) + len(self._retries) + len(self._reserved)

    def _wait_s(self, new: InferenceRequest | None) -> float:
        """Predicts when the turn of a new image comes, or, without one, when all is done."""
        if self._waiting() + len(self._running) < self._instances:
            return 0.0
        work_s = sum(batch.left_s(self._clock()) for batch in self._running)
        latency = self._latency if self._latency.is_seeded else self._full_device_latency
        work_s += latency.seconds(self._policy.ahead_px(new, self._reserved), 0)
        return work_s / self._instances

    def _retry_after_s(self) -> float:
        return float(min(60, max(1, math.ceil(self._wait_s(None)))))

    def _is_lone(self) -> bool:
        """Tells whether one image waits and nothing else is, or is about to be, on the device."""
        return (
            self._has_full_device
            and len(self._policy) == 1
            and not self._running
            and not self._retries
            and not self._reserved
        )

    def _take(self, full_device: bool) -> Batch | None:
        """Forms a batch for an instance; None when none is for it now."""
        # A run on the full device counts as one of the instances: it has their cores.
        may_take = self._is_lone() if full_device else len(self._running) < self._instances
        batch, depth = None, len(self._policy)
        requests, closed = self._next_requests() if may_take else ([], "")
        if requests:
            latency = self._full_device_latency if full_device else self._latency
            batch = Batch(requests, self._clock(), latency, closed)
            # The full device's may know nothing yet.
            batch.expected_s = max(
                known.seconds(batch.pixels, len(requests)) for known in (self._latency, latency)
            )
            self._running.add(batch)
        if len(self._policy) != depth:
            self._observe_depth()
        self._wake()
        return batch

    def _wake(self) -> None:
        """Wakes the one instance for which there is work, which then wakes the next.

        One that finds, once awake, that the work is no longer for it, does the same.
        """
        if self._is_lone():
            self._notify(full_device=True)
        elif (self._policy or self._retries) and len(self._running) < self._instances:
            self._notify(full_device=False)

    def _notify(self, *, full_device: bool) -> None:
        (self._full_device if full_device else self._shared_instance).notify()

    def _next_requests(self) -> tuple[list[InferenceRequest], str]:
        """Takes the next images, less those whose callers left or whose time is over, and says why
        they are no more: see `Observer`."""
        while self._retries:
            request = self._retries.popleft()
            if not request.future.done():
                return [request], "retry"
        while True:
            requests, closed = self._policy.take(now := self._clock(), self._latency.seconds)
            if not requests:
                return [], closed
            left = []
            for request in requests:
                if request.deadline is not None and now >= request.deadline:
                    settle(request.future, DeadlineExceeded())  # its timer is late
                elif not request.future.done():
                    left.append(request)
            if left:
                return left, closed

    def _observe_depth(self) -> None:
        """Tells the observer while the lock is held: else it might be told an older depth last."""
        self._observer.queue_depth(self._model, self._version, len(self._policy))
