"""Which images run next: the order of one model's queue, and nothing of threads or futures.

Every image has a rank: the moment it came, a head start earlier when its priority is high and as
much later when it is low. The image of the least rank leads; a batch is the leader and the next
images of exactly its shape that want the same of the network. Such mates overtake older images of
other kinds, but none that has waited longer than the age cap: so a rare size waits for at most one
more batch, and a low priority for at most twice the head start longer than a high one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from service.core.types import Priority


@dataclass(eq=False, slots=True)
class Queued:
    """deadline: a moment of the queue's clock, or None. The rest is known when the image is there,
    see `came`.

    kind: only images of one kind can share a batch.
    """

    priority: Priority
    deadline: float | None
    image: npt.NDArray[np.uint8] = field(init=False)
    enqueued_s: float = field(init=False, default=0.0)
    pixels: int = field(init=False, default=0)
    kind: Hashable = field(init=False, default=None)

    def came(self, image: npt.NDArray[np.uint8], now: float, wants: Hashable = None) -> None:
        """image: uint8 RGB [H,W,3]. now: a moment of the queue's clock. wants: of the network,
        besides the label map."""
        self.image = image
        self.enqueued_s = now
        self.pixels = image.shape[0] * image.shape[1]
        self.kind = image.shape, wants


Q = TypeVar("Q", bound=Queued)
_Group = tuple[Hashable, Priority]


class Queue(Generic[Q]):
    """Groups by kind and priority, each in its order of arrival."""

    def __init__(self, *, max_batch: int, max_batch_pixels: int, age_cap_s: float) -> None:
        """max_batch_pixels bounds N * H * W of a batch; a larger single image still leads one.

        age_cap_s is the head start of a priority, too.
        """
        self._max_batch = max_batch
        self._max_batch_pixels = max_batch_pixels
        self._age_cap_s = age_cap_s
        # Dictionaries for their order, which is that of arrival, and for removal in O(1).
        self._groups: dict[_Group, dict[Q, None]] = {}
        self._pixels = dict.fromkeys(Priority, 0)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Q]:
        for group in self._groups.values():
            yield from group

    def pixels(self, priority: Priority) -> int:
        """Of the images of this priority and of higher ones."""
        return sum(self._pixels[p] for p in Priority if p <= priority)

    def add(self, item: Q) -> None:
        self._groups.setdefault((item.kind, item.priority), {})[item] = None
        self._pixels[item.priority] += item.pixels
        self._count += 1

    def remove(self, item: Q) -> bool:
        """False when it is not here: not yet, or no longer."""
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

    def take(self, now: float, seconds: Callable[[float, int], float]) -> list[Q]:
        """Out of the queue: the next batch; empty when nothing waits.

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
        if room > 1:
            kind = leader.kind
            aged = [
                self._rank(head)
                for head in heads
                if head.kind != kind and now - head.enqueued_s >= self._age_cap_s
            ]
            limit = min(aged, default=math.inf)
            urgent = _moment(leader)
            while len(taken) < room and (mate := self._next_of(kind)) is not None:
                n = len(taken) + 1
                urgent = min(urgent, _moment(mate))
                if self._rank(mate) > limit or now + seconds(n * leader.pixels, n) > urgent:
                    break
                self.remove(mate)
                taken.append(mate)
        return taken

    def clear(self) -> None:
        self._groups.clear()
        self._pixels = dict.fromkeys(Priority, 0)
        self._count = 0

    def _next_of(self, kind: Hashable) -> Q | None:
        heads = [next(iter(g)) for p in Priority if (g := self._groups.get((kind, p)))]
        return min(heads, key=self._rank, default=None)

    def _rank(self, item: Q) -> float:
        return item.enqueued_s + (item.priority - Priority.NORMAL) * self._age_cap_s


def _moment(item: Queued) -> float:
    return math.inf if item.deadline is None else item.deadline
