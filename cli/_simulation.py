"""Simulates replicas behind a balancer: how long images take, and how many replicas that needs."""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BALANCERS: Final = ("random", "two-choices", "least-loaded")
IMAGES: Final = 10_000
_WARM: Final = 1000
"""Images at the start that do not count: the queues are empty then."""
_MOST: Final = 10
"""So many replicas stand for all where there are more, each with as much load: a balancer that
looks at all of them does better the more there are, and the others as well."""


@dataclass(frozen=True, slots=True)
class Replica:
    """Describes one server. slots: images that run at the same time. service_ms: how long one takes
    alone, from the least to the greatest in equal steps of their rank."""

    slots: int
    service_ms: Sequence[float]

    @property
    def images_per_s(self) -> float:
        """Tells what it does at most."""
        values = self.service_ms
        between = [(a + b) / 2 for a, b in zip(values, values[1:], strict=False)] or list(values)
        return 1000 * self.slots * len(between) / sum(between)

    def draw_s(self, chance: random.Random) -> float:
        place = chance.random() * (len(self.service_ms) - 1)
        below = int(place)
        part = self.service_ms[below : below + 2]
        return (part[0] + (part[-1] - part[0]) * (place - below)) / 1000


class _Queue:
    """Holds the images of one replica, first come, first served."""

    def __init__(self, slots: int) -> None:
        self._free = [0.0] * slots
        self._ends: list[float] = []

    def outstanding(self, now: float) -> int:
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
        return len(self._ends)

    def add(self, now: float, takes_s: float) -> float:
        """Returns when the image is answered."""
        end = max(now, self._free[0]) + takes_s
        heapq.heapreplace(self._free, end)
        heapq.heappush(self._ends, end)
        return end


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Draws the seconds at which requests are due: exponential gaps of 1/rate on average."""
    chance = random.Random(seed)  # nosec B311  # a load, the same again by its seed
    due, found = 0.0, []
    while (due := due + chance.expovariate(rate)) < seconds:
        found.append(due)
    return found


def latencies_s(
    replica: Replica, count: int, rate: float, balancer: str, images: int = IMAGES, seed: int = 0
) -> list[float]:
    """Returns the times of Poisson arrivals from arrival to answer, sorted. rate: of all together,
    per second. Nothing is refused."""
    chance = random.Random(seed)  # nosec B311  # a simulation, the same again by its seed
    queues = [_Queue(replica.slots) for _ in range(count)]
    now, found = 0.0, []
    for n in range(images + _WARM):
        now += chance.expovariate(rate)
        if balancer == "random":
            queue = chance.choice(queues)
        else:
            among = queues if balancer == "least-loaded" else chance.sample(queues, min(2, count))
            held = [queue.outstanding(now) for queue in among]
            least = min(held)
            queue = chance.choice([q for q, n in zip(among, held, strict=True) if n == least])
        end = queue.add(now, replica.draw_s(chance))
        if n >= _WARM:
            found.append(end - now)
    return sorted(found)


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolates between sorted values as numpy does, whose import takes 0.1 s of a core."""
    place = (len(values) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


def p99_s(replica: Replica, count: int, rate: float, balancer: str) -> float:
    few = min(count, _MOST)
    return percentile(latencies_s(replica, few, rate * few / count, balancer), 99)


def replicas_for(replica: Replica, rate: float, target_s: float, balancer: str) -> int | None:
    """Returns the fewest that keep 99 of 100 answers within the target; None where none do, since
    an image alone takes longer."""
    least = max(1, math.ceil(rate / replica.images_per_s))

    def met(count: int) -> bool:
        return p99_s(replica, count, rate, balancer) <= target_s

    most = least
    while not met(most):
        if most > 100 * least:
            return None
        most *= 2
    return bisect_left(range(most), True, least, key=met) if most > least else least
