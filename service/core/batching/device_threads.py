"""Runs a model's instances, each on a thread that takes its next batch, runs it and delivers."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np

from service.core.batching.policy import InferenceResult
from service.core.batching.queue import Batch, BatchQueue
from service.core.threads import start_thread
from service.core.types import Clock, Float32Array, Instance

_serving: WeakKeyDictionary[threading.Thread, BatchQueue] = WeakKeyDictionary()


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
                label_maps[n], queue_s, infer_s, len(requests), postprocessed, clock() - began_s
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

    A function of its own, for at its end nothing holds the batch: it would live until the next.
    """
    batch = queue.next_batch(full_device=instance.full_device)
    if batch is None:
        return False
    try:
        results = run(instance, batch, clock)
    except BaseException as error:
        queue.retry_singly(batch, error)
    else:
        queue.finish(batch, results, clock() - batch.started_s)
    return True


@atexit.register
def _end() -> None:
    """Waits for the runs at hand: a thread inside a runtime would return into nothing if the
    interpreter ended first."""
    serving = list(_serving.items())
    for _, queue in serving:
        queue.close()
    for thread, _ in serving:
        thread.join()
