"""Decides which images run next and predicts how long: one queue, without threads or a clock.

How requests are answered is here, too.

Every image has a rank: the moment it came, a head start earlier when its priority is high and as
much later when it is low. The image of the least rank leads; a batch is the leader and the next
images of exactly its shape that want the same of the network. Such mates overtake older images of
other kinds, but none that has waited longer than the age cap: so a rare size waits for at most one
more batch, and a low priority for at most twice the head start longer than a high one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from service.core.types import Clock, Float32Array, Priority, UInt8Array
from service.errors import DeadlineExceeded

T = TypeVar("T")

AGE_CAP_S: Final = 0.1
"""About two inferences of an ordinary image."""

# What a run costs besides its pixels, as so many pixels: without it a few tiny images would make
# every large one look hours away.
RUN_OVERHEAD_PX: Final = 16_384
# Weight that a run keeps with each later one: the mean follows a change of load in some ten runs.
_MEMORY: Final = 0.8

_Group = tuple[Hashable, Priority]

Postprocess = Callable[[UInt8Array, Float32Array | None], Any]
"""Turns a label map, uint8 [H,W], and the logits, float32 [C,H,W] where they were wanted, into what
the reply needs.

It runs on the device's thread, though that delays the next batch a little: logits that waited
elsewhere would take a dozen times the memory of the images, and to hand a label map to another
thread costs more than packing it.
"""


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """Holds one image's answer and how long it took to come.

    label_map: uint8 [H,W]. postprocessed: what `postprocess` made of it, and postprocess_s how long
    that took. infer_s: the whole batch's run.
    """

    label_map: UInt8Array
    queue_s: float
    infer_s: float
    batch_size: int
    postprocessed: Any = None
    postprocess_s: float = 0.0


@dataclass(eq=False, slots=True)
class InferenceRequest:
    """Follows one image through the queue: it is made before the decode and answered once.

    deadline: a moment of the queue's clock, or None. pixels: those of the image's header, until the
    image is there. image: uint8 RGB [H,W,3]. kind: only images of one kind can share a batch. From
    `image` on, `set_image` sets all.
    """

    priority: Priority
    deadline: float | None
    future: asyncio.Future[InferenceResult]
    image: UInt8Array = field(init=False)
    postprocess: Postprocess | None = field(init=False, default=None)
    wants_logits: bool = field(init=False, default=False)
    enqueued_s: float = field(init=False, default=0.0)
    pixels: int = field(init=False, default=0)
    kind: Hashable = field(init=False, default=None)

    def set_image(
        self, image: UInt8Array, now: float, postprocess: Postprocess | None, wants_logits: bool
    ) -> None:
        self.image = image
        self.postprocess = postprocess
        self.wants_logits = wants_logits
        self.enqueued_s = now
        self.pixels = image.shape[0] * image.shape[1]
        self.kind = image.shape, wants_logits


def settle(future: asyncio.Future[Any], outcome: object) -> None:
    """Answers whoever awaits `future`, from any thread; does nothing if nobody does any more.

    outcome: the result, or the exception to raise.
    """
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        future.get_loop().call_soon_threadsafe(settle_now, future, outcome)


def settle_now(future: asyncio.Future[Any], outcome: object) -> None:
    """Does what `settle` does, on the event loop."""
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


async def result_by(future: asyncio.Future[T], deadline: float | None, clock: Clock) -> T:
    """Waits for a future, which is done afterwards, whatever happens.

    deadline: a moment of `clock`, or None. Raises: DeadlineExceeded, and what the future raises.
    """
    if deadline is None:
        return await future
    left_s = deadline - clock()
    if left_s <= 0:
        future.cancel()
        raise DeadlineExceeded()
    # The error is made only when it comes to that.
    timer = future.get_loop().call_later(left_s, lambda: settle_now(future, DeadlineExceeded()))
    try:
        return await future
    finally:
        timer.cancel()


class LatencyModel:
    """Predicts the seconds of a run from its pixels: a mean in which old runs fade."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._pixels = 0.0

    @property
    def is_seeded(self) -> bool:
        return self._pixels > 0

    def update(self, pixels: int, images: int, seconds: float) -> None:
        """Learns from a run of `images` with `pixels` in all."""
        self._seconds = self._seconds * _MEMORY + max(0.0, seconds)
        self._pixels = self._pixels * _MEMORY + pixels + images * RUN_OVERHEAD_PX

    def seconds(self, pixels: float, images: int = 1) -> float:
        """Predicts what one instance needs for so much; 0 before the first run."""
        if not self._pixels:
            return 0.0
        return (pixels + images * RUN_OVERHEAD_PX) * self._seconds / self._pixels


@dataclass(eq=False, slots=True)
class Batch:
    """Lists the requests that one instance runs at once, since `started_s`.

    latency: the model that predicts such runs, and learns from this one. terminate: tells the
    instance to end the run. expected_s, busy_s, stuck: what the run should take, has taken, and
    whether that is far too long, for the watchdog.
    """

    requests: list[InferenceRequest]
    started_s: float
    latency: LatencyModel
    pixels: int = field(init=False)
    terminate: Callable[[], None] = field(init=False, default=lambda: None)
    expected_s: float = 0.0
    busy_s: float = 0.0
    stuck: bool = False

    def __post_init__(self) -> None:
        self.pixels = sum(request.pixels for request in self.requests)


class BatchPolicy:
    """Keeps images in groups by kind and priority, each in order of arrival, and forms batches."""

    def __init__(self, *, max_batch: int, max_batch_pixels: int, age_cap_s: float) -> None:
        """max_batch_pixels bounds N * H * W of a batch; a larger single image still leads one.

        age_cap_s is the head start of a priority, too.
        """
        self._max_batch = max_batch
        self._max_batch_pixels = max_batch_pixels
        self._age_cap_s = age_cap_s
        # Dictionaries for their order, which is that of arrival, and for removal in O(1).
        self._groups: dict[_Group, dict[InferenceRequest, None]] = {}
        self._pixels = dict.fromkeys(Priority, 0)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[InferenceRequest]:
        for group in self._groups.values():
            yield from group

    def pixels(self, priority: Priority) -> int:
        """Counts the pixels of the images of this priority and of higher ones."""
        return sum(self._pixels[p] for p in Priority if p <= priority)

    def add(self, item: InferenceRequest) -> None:
        self._groups.setdefault((item.kind, item.priority), {})[item] = None
        self._pixels[item.priority] += item.pixels
        self._count += 1

    def remove(self, item: InferenceRequest) -> bool:
        """Returns False when it is not here: not yet, or no longer."""
        key = item.kind, item.priority
        group = self._groups.get(key)
        if group is None or item not in group:
            return False
        del group[item]
        if not group:
            del self._groups[key]
        self._pixels[item.priority] -= item.pixels
        self._count -= 1
        return True

    def take(self, now: float, seconds: Callable[[float, int], float]) -> list[InferenceRequest]:
        """Takes the next batch out of the queue; it is empty when nothing waits.

        seconds: what a run of so many pixels and images should take; a mate that would make the
        batch too late for one of its images has to wait for the next.
        """
        if not self._count:
            return []
        if self._count == 1:
            item = next(iter(self))
            self.remove(item)
            return [item]
        heads = [next(iter(group)) for group in self._groups.values()]
        leader = min(heads, key=self._rank)
        room = self._max_batch_pixels // leader.pixels if leader.pixels else self._max_batch
        room = min(self._max_batch, max(1, room))
        taken = [leader]
        self.remove(leader)
        if room == 1:
            return taken
        kind = leader.kind
        aged = [
            self._rank(head)
            for head in heads
            if head.kind != kind and now - head.enqueued_s >= self._age_cap_s
        ]
        limit = min(aged, default=math.inf)
        urgent = _deadline(leader)
        while len(taken) < room and (mate := self._next_of(kind)) is not None:
            n = len(taken) + 1
            urgent = min(urgent, _deadline(mate))
            if self._rank(mate) > limit or now + seconds(n * leader.pixels, n) > urgent:
                break
            self.remove(mate)
            taken.append(mate)
        return taken

    def clear(self) -> None:
        self._groups.clear()
        self._pixels = dict.fromkeys(Priority, 0)
        self._count = 0

    def _next_of(self, kind: Hashable) -> InferenceRequest | None:
        heads = [next(iter(g)) for p in Priority if (g := self._groups.get((kind, p)))]
        return min(heads, key=self._rank, default=None)

    def _rank(self, item: InferenceRequest) -> float:
        return item.enqueued_s + (item.priority - Priority.NORMAL) * self._age_cap_s


def _deadline(item: InferenceRequest) -> float:
    return math.inf if item.deadline is None else item.deadline
