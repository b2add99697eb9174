"""What the batcher has in hand: images on their way, batches, and the lanes that run them.

A lane is one instance of the network with the one thread that calls it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from service.core.batching.device_thread import DeviceThread
from service.core.batching.policy import Queued
from service.core.engines.cores import DEVICE_NICE
from service.core.types import Instance, Priority
from service.errors import DeadlineExceeded

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

LATE: Final = "the deadline passed before the answer was ready: allow more time or send less"


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


class Place:
    """Room in the queue for one image that is still being decoded; leave it or submit with it."""

    __slots__ = ("_leave", "held", "pixels", "priority")

    def __init__(self, leave: Callable[[Place], None], pixels: int, priority: Priority) -> None:
        """leave: the batcher's; it sets `held`."""
        self._leave = leave
        self.pixels = pixels
        self.priority = priority
        self.held = True

    def release(self) -> None:
        """May be called again."""
        if self.held:
            self._leave(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


@dataclass(eq=False, slots=True)
class Ticket(Queued):
    """One image's way through the queue: made before it is decoded, answered once.

    place: given up when the image comes.
    """

    place: Place | None
    future: asyncio.Future[Labelled]
    squeeze: Squeeze | None = field(init=False, default=None)
    finish: Finish | None = field(init=False, default=None)
    timer: asyncio.TimerHandle | None = field(init=False, default=None)


class Worker(Protocol):
    """One thread that runs batches, see `DeviceThread`."""

    def put(self, batch: Batch) -> None: ...

    def stop(self) -> None: ...

    def join(self) -> None: ...


@dataclass(eq=False, slots=True)
class Lane:
    """One instance of the network and the one thread that calls it."""

    instance: Instance
    thread: Worker


@dataclass(eq=False, slots=True)
class Batch:
    """What a lane runs at once, since `started_s`."""

    lane: Lane
    items: list[Ticket]
    pixels: int
    started_s: float
    alone: bool


Step = Callable[[Batch], Batch | None]
"""Runs a batch, raises nothing, and returns what its lane runs next."""

Answer = tuple[UInt8Array, Scores | None, Any]
"""Label map, scores, and what `finish` made, of one image."""


def one_thread(name: str, step: Step) -> Worker:
    """One that leaves the core to the event loop."""
    return DeviceThread(name, step, nice=DEVICE_NICE)


def expire(item: Ticket) -> None:
    """The deadline has come, wherever the image is."""
    fail(item, DeadlineExceeded(LATE))


def fail(item: Ticket, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)


def run_batch(lane: Lane, items: Sequence[Ticket]) -> list[Answer]:
    """On a device thread. Raises ValueError when the answer is not one label map per image."""
    images = [item.image for item in items]
    batch = images[0][None] if len(images) == 1 else lane.instance.stack(images)
    logits: Float32Array | None = None
    if items[0].squeeze is None:
        label_maps = lane.instance.run(batch)
    else:
        label_maps, logits = lane.instance.run_with_logits(batch)
    if label_maps.shape != batch.shape[:3]:
        raise ValueError(f"{batch.shape} in, {label_maps.shape} out")
    if logits is not None and logits.shape[2:] != batch.shape[1:3]:
        raise ValueError(f"{batch.shape} in, logits {logits.shape} out")
    answers: list[Answer] = []
    for n, item in enumerate(items):
        label_map = label_maps[n]
        squeeze, finish = item.squeeze, item.finish
        scores = None if squeeze is None or logits is None else squeeze(logits[n], label_map)
        answers.append((label_map, scores, None if finish is None else finish(label_map)))
    return answers
