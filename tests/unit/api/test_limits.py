"""Limits of callers and guesses of keys, in virtual time: what gets through, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import limits as module
from service.api.call import network_of
from service.api.limits import FREE_GUESSES, NO_LIMITS, Bucket, Guesses, Limiter, Limits, Usage
from service.errors import LimitExceeded


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def usage(words: str) -> tuple[Usage, Clock]:
    clock = Clock()
    return Usage(Limits.of(words.split()), clock), clock


def test_limits_are_read_and_printed() -> None:
    words = "requests_s=0.5 megapixels_s=50 in_flight=4"
    assert str(Limits.of(words.split())) == words
    assert Limits.of([]) == NO_LIMITS
    own, default = Limits(requests_s=1.0), Limits.of(words.split())
    assert own.over(default) == Limits(1.0, 50.0, 4)


@pytest.mark.parametrize(
    "words",
    ["requests=17", "requests_s", "requests_s=0", "requests_s=-17", "in_flight=1.75"]
    + ["requests_s=inf", "requests_s=nan", "megapixels_s=many", "in_flight=22 in_flight=22"],
)
def test_what_is_no_limit_is_refused_without_repeating_it(words: str) -> None:
    with pytest.raises(ValueError, match="number") as caught:
        Limits.of(words.split())
    for value in ("17", "1.75", "22", "many", "inf", "nan"):
        assert f" {value}" not in str(caught.value) and f"={value}" not in str(caught.value)


@given(
    rate=st.floats(0.1, 1000),
    costs=st.lists(st.tuples(st.floats(0.01, 5000), st.floats(0, 3)), min_size=1, max_size=60),
)
def test_no_more_gets_through_than_the_rate_and_one_bucket(
    rate: float, costs: list[tuple[float, float]]
) -> None:
    """Besides the last, which is paid for afterwards."""
    bucket, now, taken = Bucket(rate, 1.0), 0.0, [0.0]
    for cost, gap_s in costs:
        now += gap_s
        wait_s = bucket.wait_s(cost, now)
        if wait_s:
            assert bucket.wait_s(cost, now + wait_s + 1e-6) == 0, "the wait it tells is enough"
            continue
        bucket.take(cost, now)
        assert sum(taken) <= rate * (now + bucket.burst_s) * (1 + 1e-6)
        taken.append(cost)


@given(rate=st.floats(0.1, 1000), load=st.floats(1.5, 5))
def test_who_asks_for_more_gets_all_of_the_rate(rate: float, load: float) -> None:
    """And comes again as soon as it is told to."""
    bucket, got, now = Bucket(rate, 1.0), 0, 0.0
    while now < 200 / rate:
        if wait_s := bucket.wait_s(1, now):
            now += wait_s + 1e-9
            continue
        bucket.take(1, now)
        got += 1
        now += 1 / (load * rate)
    assert got >= 0.95 * now * rate - 1


def test_requests_a_second() -> None:
    caller, clock = usage("requests_s=2")
    caller.enter()
    caller.enter()
    with pytest.raises(LimitExceeded, match="2 requests a second: retry in 1 s") as caught:
        caller.enter()
    assert caught.value.retry_after_s == pytest.approx(0.5)
    assert caught.value.limit == "requests"
    clock.now += 0.5
    caller.enter()


def test_less_than_one_a_second() -> None:
    caller, clock = usage("requests_s=0.25")
    caller.enter()
    with pytest.raises(LimitExceeded, match="retry in 4 s"):
        caller.enter()
    clock.now += 4
    caller.enter()


def test_an_image_larger_than_the_limit_is_taken_and_paid_for() -> None:
    caller, clock = usage("megapixels_s=2")
    caller.take_pixels(12_000_000, judged=True)
    with pytest.raises(LimitExceeded, match=r"2 megapixels a second: retry in 6 s") as caught:
        caller.take_pixels(2_000_000, judged=True)
    assert caught.value.limit == "pixels"
    clock.now += 6
    caller.take_pixels(2_000_000, judged=True)


def test_the_further_images_of_a_request_are_taken_but_counted() -> None:
    caller, clock = usage("megapixels_s=1")
    caller.take_pixels(900_000, judged=True)
    for _ in range(3):
        caller.take_pixels(900_000, judged=False)
    with pytest.raises(LimitExceeded):
        caller.take_pixels(100_000, judged=True)
    clock.now += 2.7
    caller.take_pixels(100_000, judged=True)


def test_requests_at_once_and_a_refusal_counts_as_none() -> None:
    caller, _ = usage("in_flight=2 requests_s=3")
    caller.enter()
    caller.enter()
    for _ in range(5):
        with pytest.raises(LimitExceeded, match="2 requests at once"):
            caller.enter()
    caller.leave()
    caller.enter()
    caller.leave()
    with pytest.raises(LimitExceeded, match="3 requests a second"):
        caller.enter()
    caller.leave()
    assert caller._running == 0


def test_the_headers_tell_the_policy_and_what_is_left() -> None:
    caller, clock = usage("requests_s=10 megapixels_s=2.5 in_flight=4")
    for _ in range(3):
        caller.enter()
    caller.take_pixels(5_000_000, judged=True)
    policy, left = caller.headers()
    assert policy == (
        "RateLimit-Policy",
        '"requests";q=10;w=1, "pixels";q=2500000;qu="pixels";w=1, '
        '"in_flight";q=4;qu="concurrent-requests"',
    )
    assert left == ("RateLimit", '"requests";r=7;t=1, "pixels";r=0;t=2, "in_flight";r=1')
    clock.now += 60
    assert '"requests";r=10;t=0, "pixels";r=2500000;t=0' in caller.headers()[1][1]
    assert usage("requests_s=0.5")[0].headers()[0][1] == '"requests";q=1;w=2'


def test_usage_is_by_caller_and_begins_again_with_other_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    limiter = Limiter(Limits(in_flight=4), clock)
    one = limiter.usage("key one", NO_LIMITS)
    assert one is not None and one.limits == Limits(in_flight=4)
    assert limiter.usage("key one", NO_LIMITS) is one
    assert limiter.usage("key two", NO_LIMITS) is not one
    other = limiter.usage("key one", Limits(requests_s=1.0))
    assert other is not one and other is not None and other.limits == Limits(1.0, None, 4)
    assert Limiter(NO_LIMITS, clock).usage("key one", NO_LIMITS) is None
    monkeypatch.setattr(module, "MAX_TRACKED", 2)
    for name in "abcd":
        limiter.usage(name, NO_LIMITS)
    assert list(limiter._usages) == ["c", "d"]


def test_guesses_wait_longer_and_longer_and_are_forgiven() -> None:
    clock = Clock()
    guesses = Guesses(clock)
    waits = []
    for _ in range(FREE_GUESSES + 9):
        guesses.wrong("1.2.3.4")
        waits.append(guesses.wait_s("1.2.3.4"))
    assert waits == [0.0] * FREE_GUESSES + [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert guesses.wait_s("1.2.3.5") == 0
    clock.now += 59
    assert guesses.wait_s("1.2.3.4") == 1
    clock.now += 1
    assert guesses.wait_s("1.2.3.4") == 0
    guesses.wrong("1.2.3.4")
    assert guesses.wait_s("1.2.3.4") == 60, "one is enough"
    clock.now += module.FORGIVEN_S + 1
    guesses.wrong("1.2.3.4")
    assert guesses.wait_s("1.2.3.4") == 0


def test_the_table_of_guesses_is_bounded() -> None:
    guesses = Guesses(Clock())
    for n in range(module.MAX_TRACKED + 500):
        guesses.wrong(str(n))
    assert len(guesses._wrong) == module.MAX_TRACKED
    assert "499" not in guesses._wrong and "500" in guesses._wrong


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::1", "::/64"),
        ("", ""),
        ("a:socket", "a:socket"),
    ],
)
def test_who_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(
    "words", ["in_flight=12345678", "requests_s=1234567.5", f"in_flight={10**400}"]
)
def test_limits_are_printed_as_they_are_read(words: str) -> None:
    assert str(Limits.of([words])) == words
