"""Finds runs that are busy for far longer than they may, and models that no longer work.

A run may take `FACTOR` times what the latency model predicts, and at least a floor. Then its
requests are answered, its model takes no more, and the runtime is told to end it; once it has, the
model serves again. One that goes on as long again is in a kernel that does not listen. A thread
cannot be killed, so the model is given up with its threads, for its manager to load it anew. Two
that were given up within a minute are no accident: the process should end.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable
from typing import Final

from service.core.batching.policy import Batch, settle_now
from service.core.models.registry import LoadedModel
from service.core.types import Clock, Observer
from service.errors import ModelNotReady

TICK_S: Final = 0.5
"""Seconds between looks."""
FACTOR: Final = 20.0
"""Wide: where every core is busy, runs took up to five times what was predicted."""
TENSORRT_FACTOR: Final = 60.0
"""Times the floor that TensorRT gets: it builds an engine for a new shape, which takes minutes."""
AGAIN_S: Final = 60.0
_log = logging.getLogger(__name__)


class Watchdog:
    """Holds the policy; whoever has the models looks, every `TICK_S`, on the event loop."""

    def __init__(self, floor_s: float, *, observer: Observer, clock: Clock) -> None:
        """floor_s: seconds that every run may take."""
        self.hopeless = asyncio.Event()
        self._floor_s = floor_s
        self._observer = observer
        self._clock = clock
        self._looked_s = clock()
        self._lost_s = -math.inf

    def look(self, models: Iterable[LoadedModel]) -> list[LoadedModel]:
        """Ends the runs that are stuck; returns the models that were lost since the last look."""
        now = self._clock()
        # A process that was stopped for a while must not take that for a run that hangs.
        tick_s = min(now - self._looked_s, 2 * TICK_S)
        self._looked_s = now
        lost = [model for model in models if not model.lost and self._is_lost(model, tick_s)]
        for model in lost:
            model.lost = True
            self._observer.stuck(model.name, "lost")
            if now - self._lost_s < AGAIN_S:
                self.hopeless.set()
            self._lost_s = now
        return lost

    def _is_lost(self, model: LoadedModel, tick_s: float) -> bool:
        queue = model.queue
        if queue.alive and not all(thread.is_alive() for thread in model.threads):
            queue.die(RuntimeError("one of its device threads has ended"))
        if queue.closed:
            return True
        floor_s = self._floor_s * (TENSORRT_FACTOR if model.provider == "tensorrt" else 1.0)
        overdue: list[Batch] = []
        lost = False
        with queue.running() as batches:
            for batch in batches:
                batch.busy_s += tick_s
                may_take_s = max(floor_s, FACTOR * batch.expected_s)
                lost |= batch.busy_s > 2 * may_take_s
                if batch.busy_s > may_take_s and not batch.stuck:
                    batch.stuck = True
                    batch.terminate()
                    overdue.append(batch)
            queue.stuck = any(batch.stuck for batch in batches)
        for batch in overdue:
            self._answer(model, batch)
        if lost:
            _log.critical(
                "%s version %s: its run cannot be ended: it is given up with its thread and its "
                "memory, and loaded anew",
                model.name,
                model.version,
            )
            queue.close(ModelNotReady(f"model {model.name} hangs: send the request to another"))
        return lost

    def _answer(self, model: LoadedModel, batch: Batch) -> None:
        _log.error(
            "%s version %s: a run of %d images, %d px in all, is busy for %.1f s where %.2f s were "
            "expected, and is ended",
            model.name,
            model.version,
            len(batch.requests),
            batch.pixels,
            batch.busy_s,
            batch.expected_s,
        )
        self._observer.stuck(model.name, "ended")
        error = (
            f"model {model.name} took far longer over this image than it may and was stopped: try "
            "again, and report the request id if it recurs"
        )
        for request in batch.requests:
            settle_now(request.future, ModelNotReady(error))
