"""Decides which images run next and predicts how long: one queue, without threads or a clock.

Clients take turns, by start-time fair queueing over the predicted cost: one with a single image
waits for one of each other client, not for all that a flood has queued. Images of low priority are
bulk work, and take turns among themselves: of the device they get what the others leave, and a
tenth where those leave nothing.

Among a client's own images each has a rank: the moment it came, a head start earlier when its
priority is high. The one of the least rank leads; a batch is the leader and the next images, of any
client, of exactly its shape that want the same of the network. Such mates overtake older images of
other kinds, but none whose turn comes first and that has waited longer than the age cap: so a rare
size waits for at most one more batch.

How requests are answered is here, too. Source: Goyal, Vin and Cheng, Start-time Fair Queueing,
SIGCOMM 1996.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
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

BULK_SHARE: Final = 0.1
"""Share of the device that bulk work has, at least, while other work waits."""
SHARES: Final = {True: BULK_SHARE, False: 1 - BULK_SHARE}
ROOM_FOR_OTHERS: Final = 7
"""One client may hold as many times the room that is free: an eighth stays for those who come.

Source: Choudhury and Hahne, Dynamic queue length thresholds, IEEE/ACM ToN 6(2), 1998."""

MAX_CLIENTS: Final = 4096
"""Clients whose turns are remembered while the queue is never empty."""

_Group = tuple[Hashable, Priority]
_Owner = tuple[bool, str]
"""Tells whether it is bulk work, and the client."""

Postprocess = Callable[[UInt8Array, Float32Array | None], Any]
"""Turns a label map, uint8 [H,W], and the logits, float32 [C,H,W] where they were wanted, into what
the reply needs. It runs on the device's thread, though that delays the next batch a little: logits
that waited elsewhere would take a dozen times the memory of the images, and to hand a label map to
another thread costs more than packing it."""


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """Holds one image's answer and how long it took to come.

    label_map: uint8 [H,W]. postprocessed: what `postprocess` made of it, and postprocess_s how long
    that took. infer_s: the whole batch's run. started_s, marks: see `Timings`.
    """

    label_map: UInt8Array
    queue_s: float
    infer_s: float
    batch_size: int
    postprocessed: Any = None
    postprocess_s: float = 0.0
    started_s: float = 0.0
    marks: tuple[object, ...] = ()


@dataclass(eq=False, slots=True)
class InferenceRequest:
    """Follows one image through the queue: it is made before the decode and answered once.

    deadline: a moment of the queue's clock, or None. client, mark: see `Client`. pixels: those that
    the network computes for, the image's own at least. image: uint8 RGB [H,W,3]. kind: only images
    of one kind can share a batch. From `image` on, `set_image` sets all.
    """

    priority: Priority
    deadline: float | None
    future: asyncio.Future[InferenceResult]
    client: str = ""
    mark: object = None
    image: UInt8Array = field(init=False)
    postprocess: Postprocess | None = field(init=False, default=None)
    wants_logits: bool = field(init=False, default=False)
    enqueued_s: float = field(init=False, default=0.0)
    pixels: int = field(init=False, default=0)
    kind: Hashable = field(init=False, default=None)

    @property
    def cost_px(self) -> int:
        """Returns what the run of it alone should cost, in pixels."""
        return self.pixels + RUN_OVERHEAD_PX

    @property
    def owner(self) -> _Owner:
        return self.priority is Priority.LOW, self.client

    def set_image(
        self, image: UInt8Array, now: float, postprocess: Postprocess | None, wants_logits: bool
    ) -> None:
        self.image = image
        self.postprocess = postprocess
        self.wants_logits = wants_logits
        self.enqueued_s = now
        self.pixels = max(self.pixels, image.shape[0] * image.shape[1])
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

    latency: the model that predicts such runs, and learns from this one. closed: see `Observer`.
    terminate: tells the instance to end the run. expected_s, busy_s, stuck: what the run should
    take, has taken, and whether that is far too long, for the watchdog.
    """

    requests: list[InferenceRequest]
    started_s: float
    latency: LatencyModel
    closed: str = "alone"
    pixels: int = field(init=False)
    terminate: Callable[[], None] = field(init=False, default=lambda: None)
    expected_s: float = 0.0
    busy_s: float = 0.0
    stuck: bool = False

    def __post_init__(self) -> None:
        self.pixels = sum(request.pixels for request in self.requests)

    def left_s(self, now: float) -> float:
        """Predicts how long it still runs."""
        takes_s = self.latency.seconds(self.pixels, len(self.requests))
        return max(0.0, takes_s - (now - self.started_s))


class VirtualTime(dict[Hashable, float]):
    """Counts what each of those who take turns was given, since all of them had the same."""

    now = 0.0

    def join(self, who: Hashable) -> None:
        """Lets somebody take turns who had nothing to do: nobody saves up turns meanwhile."""
        self[who] = max(self.now, self.pop(who, 0.0))

    def give(self, who: Hashable, cost: float) -> None:
        self.now = max(self.now, self[who])
        self[who] += cost


class BatchPolicy:
    """Keeps images by client, kind and priority, each in order of arrival, and forms batches."""

    def __init__(self, *, max_batch: int, max_batch_pixels: int, age_cap_s: float) -> None:
        """max_batch_pixels bounds N * H * W of a batch; a larger single image still leads one.

        age_cap_s is the head start of a priority, too.
        """
        self._max_batch = max_batch
        self._max_batch_pixels = max_batch_pixels
        self._age_cap_s = age_cap_s
        # Dictionaries for their order, which is that of arrival, and for removal in O(1).
        self._owners: dict[_Owner, dict[_Group, dict[InferenceRequest, None]]] = {}
        self._count = 0
        self._work: Counter[tuple[_Owner, Priority]] = Counter()
        self._forget()

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[InferenceRequest]:
        for groups in self._owners.values():
            for group in groups.values():
                yield from group

    def add(self, item: InferenceRequest) -> None:
        owner = bulk, client = item.owner
        if owner not in self._owners:
            if all(other[0] is not bulk for other in self._owners):
                self._kinds.join(bulk)
            self._turns[bulk].join(client)
            self._owners[owner] = {}
            self._bound(bulk)
        self._owners[owner].setdefault((item.kind, item.priority), {})[item] = None
        self._count += 1
        self._add_work(item, item.cost_px)

    def remove(self, item: InferenceRequest) -> bool:
        """Returns False when it is not here: not yet, or no longer."""
        key, owner = (item.kind, item.priority), item.owner
        groups = self._owners.get(owner, {})
        group = groups.get(key, {})
        if item not in group:
            return False
        del group[item]
        if not group:
            del groups[key]
        if not groups:
            del self._owners[owner]
        self._count -= 1
        self._add_work(item, -item.cost_px)
        if not self._count:
            self._forget()
        return True

    def ahead_px(self, new: InferenceRequest | None, reserved: Iterable[InferenceRequest]) -> float:
        """Predicts the work that goes before a new image, or, without one, counts all of it.

        reserved: images that are to come. Of another client's work goes before it no more than of
        its own and itself, for they take turns; of its own, that of the same and higher priority.
        """
        coming = (((item.owner, item.priority), item.cost_px) for item in reserved)
        own, others = 0, dict[_Owner, int]()
        for (owner, priority), px in (*self._work.items(), *coming):
            if new is None or owner != new.owner:
                others[owner] = others.get(owner, 0) + px
            elif priority <= new.priority:
                own += px
        if new is None or not others:
            return own + sum(others.values())
        bulk, turn = new.owner[0], own + new.cost_px
        before = own + sum(min(px, turn) for owner, px in others.items() if owner[0] is bulk)
        other = sum(px for owner, px in others.items() if owner[0] is not bulk)
        return before + min(other, (before + new.cost_px) / SHARES[bulk] * SHARES[not bulk])

    def take(
        self, now: float, seconds: Callable[[float, int], float]
    ) -> tuple[list[InferenceRequest], str]:
        """Takes the next batch, empty when nothing waits, and says why it closed: see `Observer`.

        seconds: what a run of so many pixels and images should take; a mate that would make the
        batch too late for one of its images has to wait for the next.
        """
        if not self._count:
            return [], "alone"
        if self._count == 1:
            self.remove(item := next(iter(self)))
            return [item], "alone"
        leader = self._leader()
        kind, bulk = leader.kind, leader.owner[0]
        room = min(self._max_batch, max(1, self._max_batch_pixels // max(1, leader.pixels)))
        taken = [leader]
        self._give(leader)
        if room == 1:
            return taken, "full"
        others = (head for head in self._heads(bulk) if head.kind != kind)
        aged = [head for head in others if now - head.enqueued_s >= self._age_cap_s]
        urgent = _deadline(leader)
        while len(taken) < room:
            mates = [head for head in self._heads(bulk) if head.kind == kind]
            if not mates:
                return taken, "alone"
            mate = min(mates, key=self._turn)
            n = len(taken) + 1
            urgent = min(urgent, _deadline(mate))
            if any(self._turn(head) < self._turn(mate) for head in aged):
                return taken, "turn"
            if now + seconds(n * leader.pixels, n) > urgent:
                return taken, "late"
            self._give(mate)
            taken.append(mate)
        return taken, "full"

    def clear(self) -> None:
        self._owners.clear()
        self._work.clear()
        self._count = 0
        self._forget()

    def count(self, client: str) -> int:
        """Counts the images of a client."""
        groups = (self._owners.get((bulk, client), {}) for bulk in self._turns)
        return sum(len(group) for of_owner in groups for group in of_owner.values())

    def _leader(self) -> InferenceRequest:
        first = {bulk: min(self._heads(bulk), key=self._turn, default=None) for bulk in self._turns}
        found = {bulk: head for bulk, head in first.items() if head is not None}
        if len(found) == 1:
            return found.popitem()[1]
        # By what each would then have been given: bulk work that has just come waits for its share.
        later = {bulk: self._kinds[bulk] + h.cost_px / SHARES[bulk] for bulk, h in found.items()}
        return found[later[True] < later[False]]

    def _heads(self, bulk: bool) -> Iterator[InferenceRequest]:
        for owner, groups in self._owners.items():
            if owner[0] is bulk:
                for group in groups.values():
                    yield next(iter(group))

    def _give(self, item: InferenceRequest) -> None:
        """Takes an image out of the queue, as its owner's turn."""
        bulk, client = item.owner
        self._turns[bulk].give(client, item.cost_px)
        self._kinds.give(bulk, item.cost_px / SHARES[bulk])
        self.remove(item)

    def _add_work(self, item: InferenceRequest, px: int) -> None:
        key = item.owner, item.priority
        self._work[key] += px
        if not self._work[key]:
            del self._work[key]

    def _bound(self, bulk: bool) -> None:
        """Forgets clients who neither wait nor were given more than others."""
        if len(turns := self._turns[bulk]) > MAX_CLIENTS:
            for client, px in list(turns.items()):
                if px <= turns.now and (bulk, client) not in self._owners:
                    del turns[client]

    def _forget(self) -> None:
        self._kinds = VirtualTime()  # of bulk work and other
        self._turns = {bulk: VirtualTime() for bulk in (False, True)}

    def _turn(self, item: InferenceRequest) -> tuple[float, float]:
        bulk, client = item.owner
        return self._turns[bulk][client], self._rank(item)

    def _rank(self, item: InferenceRequest) -> float:
        return item.enqueued_s + (item.priority - Priority.NORMAL) * self._age_cap_s


def _deadline(item: InferenceRequest) -> float:
    return math.inf if item.deadline is None else item.deadline
