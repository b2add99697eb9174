"""Ways to wait for what settles later, and to measure what others in the process would disturb."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_S = 30.0
EVERY_S = 0.01


def _state(condition: Callable[[], object], told: Callable[[], str] | None) -> str:
    return f"{told() if told else condition} did not come about in {TIMEOUT_S:g} s"


def until(condition: Callable[[], object], told: Callable[[], str] | None = None) -> None:
    """Return as soon as `condition()` is true; `told()` is what a failure says."""
    ends = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > ends:
            raise AssertionError(_state(condition, told))
        time.sleep(EVERY_S)


async def soon(condition: Callable[[], object], told: Callable[[], str] | None = None) -> None:
    """Wait as `until` does, while the event loop runs on."""
    ends = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > ends:
            raise AssertionError(_state(condition, told))
        await asyncio.sleep(EVERY_S)


def in_own_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Returns what `function`, which a module defines, returns in a new interpreter.

    Memory belongs to a process: measured in the one that runs the tests, it would include
    whatever ran there before.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result(timeout=120)
