"""Contenders that take turns, so that clocks and neighbours fall on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from bench import record

Run = Callable[[], object]


def take_turns(
    contenders: Mapping[str, Run],
    images: int,
    slot_s: float,
    rounds: int,
    synchronize: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Per contender its calls' times, and images a second over its slots.

    images: of each call. A slot is at least one call, and none is counted of the first, which
    allocates and chooses its algorithms.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
        synchronize()
    for _ in range(rounds):
        for name, run in contenders.items():
            run()  # caches are this one's again
            synchronize()
            end = time.perf_counter() + slot_s
            while True:
                begun = time.perf_counter()
                run()
                synchronize()
                now = time.perf_counter()
                times[name].append(now - begun)
                if now >= end:
                    break
    return {
        name: {
            **record.summary(seconds),
            "images_per_s": round(images * len(seconds) / sum(seconds), 2),
        }
        for name, seconds in times.items()
    }
