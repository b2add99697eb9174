"""Permits that were admitted and not yet given back are held."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.batching.admission import Admission, Permit
from service.core.images.decode import check_pixels
from service.core.images.header import Header
from service.errors import ImageTooLarge, Overloaded
from tests.unit.core.fakes import Recorder
from tests.unit.core.queues import new_queue


def does_fit(held: Admission, n_bytes: int = 0, memory_bytes: int = 0) -> bool:
    try:
        held.check(new_queue(), n_bytes, memory_bytes)
    except Overloaded as error:
        assert error.retry_after_s >= 1
        return False
    return True


def image(decode_bytes: int) -> Header:
    """An image of one pixel, or of none, which the cheapest steps below need."""
    return Header("PNG", 1, int(decode_bytes >= 6), decode_bytes=decode_bytes)


def admit(held: Admission, n_bytes: int, memory_bytes: int) -> Permit:
    return held.admit(new_queue(), image(memory_bytes), n_bytes)


def admission(recorder: Recorder | None = None) -> Admission:
    return Admission(
        max_requests=3,
        max_bytes=100,
        max_pixels=50,
        max_memory_bytes=1000,
        max_decode_bytes=20_000,
        observer=recorder or Recorder(),
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
    with held.admit(queue, image(10), 1), held.admit(queue, image(10), 1):
        with pytest.raises(Overloaded):
            held.admit(queue, image(10), 1)
        assert recorder.reasons == ["queue_full"]
        assert held.held == (2, 2, 20), "what the queue refused holds nothing here"
    with held.admit(queue, image(10), 1) as permit:
        assert permit.request.pixels == 1
        assert permit.request in queue._reserved
    assert permit.request not in queue._reserved


async def test_the_queue_counts_what_the_network_computes_for() -> None:
    with admission().admit(new_queue(), image(10), 1, network_pixels=1024) as permit:
        permit.request.set_image(np.zeros((1, 1, 3), np.uint8), 0.0, None, wants_logits=False)
        assert permit.request.pixels == 1024


@pytest.mark.parametrize(("height", "width"), [(1, 65_536), (65_536, 1)])
def test_no_side_is_longer_than_that_of_any_jpeg(height: int, width: int) -> None:
    check_pixels(min(height, 65_535), min(width, 65_535), 1 << 20)
    with pytest.raises(ImageTooLarge, match="sides up to 65535 px"):
        check_pixels(height, width, 1 << 20)


async def test_what_only_decoding_takes_is_given_back_when_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.core.batching.admission.WORTH_A_TURN_BYTES", 990)
    held = admission()
    with admit(held, 10, 1000) as permit:
        assert not does_fit(held, 1, 1)
        await asyncio.to_thread(permit.decoded)
        await asyncio.sleep(0)
        assert held.held == (1, 10, 4)
        assert does_fit(held, 1, 996)
    with admit(held, 10, 994) as permit:
        permit.decoded()
        await asyncio.sleep(0)
        assert held.held == (1, 10, 994), "so little waits for the answer"
    permit._hold_less()  # late
    assert held.held == (0, 0, 0)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (Header("PNG", 3, 17), "the image is 3x17 .height x width., 51 pixels"),
        (Header("PNG", 1, 1, decode_bytes=20_001), "to decode this PNG file takes"),
    ],
)
async def test_an_image_that_never_fits_is_refused(header: Header, says: str) -> None:
    held = admission()
    with pytest.raises(ImageTooLarge, match=says):
        held.admit(new_queue(), header, 1)
    assert held.held == (0, 0, 0)


async def test_a_pixel_takes_six_bytes_whatever_the_format() -> None:
    held = admission()
    with held.admit(new_queue(), Header("RGB", 5, 10), 1):
        assert held.held == (1, 1, 300)


async def test_it_is_idle_when_the_last_has_left() -> None:
    held = admission()
    permit = admit(held, 1, 1)
    waiting = asyncio.get_running_loop().create_task(held.until_idle())
    await asyncio.sleep(0)
    assert not waiting.done()
    permit.__exit__(None, None, None)
    await waiting


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from([0, 8, 60, 300, 600]), st.booleans()),
        max_size=30,
    )
)
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
