"""Runs the work that is not the event loop's: pixels on a pool, each instance on its own thread.

A device thread takes its next batch from the queue, runs it and delivers, itself. The pool is no
`ThreadPoolExecutor` with `run_in_executor`: its two futures for each piece of work, chained through
callbacks, and `asyncio.timeout` around them cost more than packing a label map does (bench/LOG.md,
"the request path").
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from service.core.batching.policy import Batch, InferenceResult, result_by, settle, settle_now
from service.core.batching.queue import BatchQueue
from service.core.engines.cores import start_thread
from service.core.types import Clock, Float32Array, Instance
from service.errors import ShuttingDown

T = TypeVar("T")

POOL_NICE: Final = 2
DEVICE_NICE: Final = 5
"""How much the threads of the pool and of the CPU's instances stand back. With every core busy, the
slowest refusals took 11 ms without it and 7 ms with it, at the same throughput (bench/LOG.md)."""


_Task = tuple[Callable[[], Any], asyncio.Future[Any], bool]
"""Work, its future, and whether the future's result is what the work returns."""

_serving: WeakKeyDictionary[threading.Thread, BatchQueue] = WeakKeyDictionary()


class Pool:
    """Runs pieces of work on a few threads: Pillow and numpy release the interpreter's lock for the
    long parts."""

    def __init__(self, workers: int, clock: Clock) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self.clock = clock
        self._closed = False
        self._workers = workers
        for n in range(workers):
            start_thread(f"pixels-{n}", self._work, nice=POOL_NICE)

    async def run(self, work: Callable[[], T], deadline: float | None) -> T:
        """Returns what `work` returns. Work not begun by the deadline never begins.

        deadline: a moment of `clock`, or None. Raises: DeadlineExceeded, ShuttingDown, and whatever
        `work` raises.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put((work, future, True))
        return await result_by(future, deadline, self.clock)

    def submit(self, work: Callable[[], None], future: asyncio.Future[Any]) -> None:
        """Runs `work`, which sees to it that `future` is settled elsewhere.

        Here it is settled only with what `work` raises, or with ShuttingDown. Work whose future is
        done before its turn never begins.
        """
        self._put((work, future, False))

    def close(self) -> None:
        """Ends the threads. Work not begun raises ShuttingDown where it is awaited."""
        self._closed = True
        with contextlib.suppress(Empty):
            while True:
                if (task := self._tasks.get_nowait()) is not None:
                    settle_now(task[1], ShuttingDown())
        for _ in range(self._workers):
            self._tasks.put(None)

    def _put(self, task: _Task) -> None:
        if self._closed:
            settle_now(task[1], ShuttingDown())
        else:
            self._tasks.put(task)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            work, future, settles = task
            outcome: object = None
            if not future.done():  # else nobody waits for it any more
                try:
                    outcome = work()
                except BaseException as error:
                    outcome = error
                if settles or isinstance(outcome, BaseException):
                    settle(future, outcome)
            del task, work, future, outcome  # or the last image would live until the next comes


def serve(
    instances: Sequence[Instance], queue: BatchQueue, *, name: str, nice: int, clock: Clock
) -> list[threading.Thread]:
    """Starts a thread for each instance; they end when the queue is closed.

    nice: see `start_thread`. Raises RuntimeError when the system gives no more threads.
    """
    threads: list[threading.Thread] = []
    try:
        for n, instance in enumerate(instances):

            def work(instance: Instance = instance) -> None:
                _serve(instance, queue, clock)

            threads.append(start_thread(f"infer-{name}-{n}", work, nice=nice))
            _serving[threads[-1]] = queue
    except BaseException:
        queue.close()
        raise
    return threads


def run(instance: Instance, batch: Batch, clock: Clock) -> list[InferenceResult]:
    """Runs a batch and postprocesses each of its answers.

    Raises ValueError when the answer is not one label map for each image, and whatever the network
    or a postprocessing raises.
    """
    requests = batch.requests
    images = [request.image for request in requests]
    tensor = images[0][None] if len(images) == 1 else np.stack(images)
    began_s = clock()
    logits: Float32Array | None = None
    if requests[0].wants_logits:
        label_maps, logits = instance.run_with_logits(tensor)
    else:
        label_maps = instance.run(tensor)
    infer_s = clock() - began_s
    marks = tuple(request.mark for request in requests)
    if label_maps.shape != tensor.shape[:3]:
        raise ValueError(f"{tensor.shape} in, {label_maps.shape} out")
    if logits is not None and logits.shape[2:] != tensor.shape[1:3]:
        raise ValueError(f"{tensor.shape} in, logits {logits.shape} out")
    results = []
    for n, request in enumerate(requests):
        queue_s = batch.started_s - request.enqueued_s
        postprocessed, began_s = None, clock()
        if request.postprocess is not None:
            own_logits = None if logits is None else logits[n]
            postprocessed = request.postprocess(label_maps[n], own_logits)
        results.append(
            InferenceResult(
                label_maps[n],
                queue_s,
                infer_s,
                len(requests),
                postprocessed,
                clock() - began_s,
                batch.started_s,
                marks,
            )
        )
    return results


def _serve(instance: Instance, queue: BatchQueue, clock: Clock) -> None:
    try:
        while _serve_next(instance, queue, clock):
            pass
    except BaseException as error:
        queue.die(error)


def _serve_next(instance: Instance, queue: BatchQueue, clock: Clock) -> bool:
    """Runs the next batch; returns False once the queue is closed.

    A function of its own, so that at its end nothing holds the batch until the next one comes.
    """
    batch = queue.next_batch(full_device=instance.full_device)
    if batch is None:
        return False
    batch.terminate = instance.terminate
    try:
        results = run(instance, batch, clock)
    except BaseException as error:
        queue.retry_singly(batch, error)
    else:
        queue.finish(batch, results, clock() - batch.started_s)
    return True


def end_all(timeout_s: float = 10.0) -> bool:
    """Ends the runs at hand and their threads; returns whether they have ended.

    A thread inside a runtime would return into nothing if the interpreter ended first.
    """
    serving = list(_serving.items())
    for _, queue in serving:
        queue.close()
    ends_s = time.monotonic() + timeout_s
    for thread, _ in serving:
        thread.join(max(0.0, ends_s - time.monotonic()))
    return not any(thread.is_alive() for thread, _ in serving)


atexit.register(end_all)
