"""Contenders take turns, so that a busy minute of the machine falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from bench import record

Run = Callable[[], object]
Name = TypeVar("Name")


def order(names: Iterable[Name], turn: int) -> list[Name]:
    """Changes who goes first from round to round."""
    found = list(names)
    return found if turn % 2 == 0 else found[::-1]


def take_turns(
    contenders: Mapping[str, Run],
    rounds: int,
    *,
    images: int = 1,
    slot_s: float = 0.0,
    pause_s: float = 0.0,
    synchronize: Run = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Times calls: for each contender their summary and images a second.

    images: in each call. A turn counts calls for `slot_s` seconds, at least one, and begins with a
    call that is not counted, so that caches are this contender's again. Before it all wait for
    `pause_s`: threads of the one before may spin for a while. The very first call, which allocates
    and chooses its algorithms, is not counted either.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for turn in range(rounds):
        for name in order(contenders, turn):
            run = contenders[name]
            time.sleep(pause_s)
            run()
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
