"""Permits that were admitted and not yet given back are held."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.batching.admission import Admission, Permit
from service.errors import Overloaded
from tests.unit.core.fakes import Recorder
from tests.unit.core.queues import new_queue


def does_fit(held: Admission, n_bytes: int = 0, pixels: int = 0) -> bool:
    try:
        held.check(new_queue(), n_bytes, pixels)
    except Overloaded as error:
        assert error.retry_after_s >= 1
        return False
    return True


def admit(held: Admission, n_bytes: int, pixels: int) -> Permit:
    return held.admit(new_queue(), n_bytes, pixels)


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
    with admit(held, 50, 500):
        assert does_fit(held, n_bytes, pixels) is fits


async def test_requests_are_counted_and_one_always_fits() -> None:
    recorder = Recorder()
    held = admission(recorder)
    assert does_fit(held, 1000, 10_000)
    with admit(held, 1000, 10_000):
        assert not does_fit(held)
    with admit(held, 1, 10), admit(held, 2, 20), admit(held, 3, 30):
        assert held.held == (3, 6, 60)
        assert not does_fit(held)
    assert held.held == (0, 0, 0)
    assert recorder.inflights == [1, 0, 1, 2, 3, 2, 1, 0]
    assert recorder.reasons == ["overloaded"] * 2


async def test_a_permit_holds_room_in_the_queue_until_its_end() -> None:
    recorder = Recorder()
    held, queue = admission(recorder), new_queue(max_queue=1, observer=recorder)
    with held.admit(queue, 1, 10), held.admit(queue, 1, 10):
        with pytest.raises(Overloaded):
            held.admit(queue, 1, 10)
        assert recorder.reasons == ["queue_full"]
        assert held.held == (2, 2, 20), "what the queue refused holds nothing here"
    with held.admit(queue, 1, 10) as permit:
        assert permit.request.pixels == 10
        assert permit.request in queue._reserved
    assert permit.request not in queue._reserved


async def test_a_header_that_lied_is_corrected() -> None:
    held = admission()
    with admit(held, 10, 1) as permit:
        permit.correct(900)
        assert held.held == (1, 10, 900)
        assert not does_fit(held, 1, 101)
    permit.correct(50)  # late
    assert held.held == (0, 0, 0)


async def test_it_is_idle_when_the_last_has_left() -> None:
    held = admission()
    permit = admit(held, 1, 1)
    waiting = asyncio.get_running_loop().create_task(held.until_idle())
    await asyncio.sleep(0)
    assert not waiting.done()
    permit.__exit__(None, None, None)
    await waiting


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 600), st.booleans()), max_size=30))
def test_nothing_is_lost_and_no_limit_passed(steps: list[tuple[int, int, bool]]) -> None:
    asyncio.run(whatever_comes(steps))


async def whatever_comes(steps: list[tuple[int, int, bool]]) -> None:
    held = admission()
    permits: list[tuple[Permit, int, int]] = []
    for n_bytes, pixels, leave in steps:
        if leave and permits:
            permits.pop(n_bytes % len(permits))[0].__exit__(None, None, None)
        elif does_fit(held, n_bytes, pixels):
            permits.append((admit(held, n_bytes, pixels), n_bytes, pixels))
        assert held.held == (len(permits), sum(p[1] for p in permits), sum(p[2] for p in permits))
        assert len(permits) <= 1 or (held.held[1] <= 100 and held.held[2] <= 1000)
