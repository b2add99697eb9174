"""What is held is what was admitted and not yet given back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.batching.admission import Admission, Permit
from tests.unit.core.fakes import Recorder


def admission(recorder: Recorder | None = None) -> Admission:
    return Admission(
        max_requests=3, max_bytes=100, max_pixels=1000, observer=recorder or Recorder()
    )


@pytest.mark.parametrize(
    ("n_bytes", "pixels", "fits"),
    [(50, 500, True), (51, 500, False), (50, 501, False), (0, 0, True)],
)
async def test_each_limit_counts(n_bytes: int, pixels: int, fits: bool) -> None:
    held = admission()
    with held.admit(50, 500):
        assert held.fits(n_bytes, pixels) is fits


async def test_requests_are_counted_and_one_always_fits() -> None:
    recorder = Recorder()
    held = admission(recorder)
    assert held.fits(1000, 10_000)
    with held.admit(1000, 10_000):
        assert not held.fits()
        with held.admit(0, 0), held.admit(0, 0):
            assert held.held == (3, 1000, 10_000)
    assert held.held == (0, 0, 0)
    assert recorder.inflights == [1, 2, 3, 2, 1, 0]


async def test_a_header_that_lied_is_corrected() -> None:
    held = admission()
    with held.admit(10, 1) as permit:
        permit.correct(900)
        assert held.held == (1, 10, 900)
        assert not held.fits(1, 101)
    assert held.held == (0, 0, 0)


async def test_it_is_idle_when_the_last_has_left() -> None:
    held = admission()
    permit = held.admit(1, 1)
    waiting = asyncio.get_running_loop().create_task(held.until_idle())
    await asyncio.sleep(0)
    assert not waiting.done()
    permit.__exit__(None, None, None)
    await waiting


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 600), st.booleans()), max_size=30))
def test_nothing_is_lost_and_no_limit_passed(steps: list[tuple[int, int, bool]]) -> None:
    held = admission()
    permits: list[tuple[Permit, int, int]] = []
    for n_bytes, pixels, leave in steps:
        if leave and permits:
            permits.pop(n_bytes % len(permits))[0].__exit__(None, None, None)
        elif held.fits(n_bytes, pixels):
            permits.append((held.admit(n_bytes, pixels), n_bytes, pixels))
        assert held.held == (len(permits), sum(p[1] for p in permits), sum(p[2] for p in permits))
        assert len(permits) <= 1 or (held.held[1] <= 100 and held.held[2] <= 1000)


def test_a_correction_that_comes_after_the_end_holds_nothing() -> None:
    held = admission()
    with held.admit(1, 10) as permit:
        permit.correct(30)
        assert held.held == (1, 1, 30)
    permit.correct(50)
    assert held.held == (0, 0, 0)
