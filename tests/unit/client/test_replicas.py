"""Several servers behind one client: no request is lost while one of them answers."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from fcn_client import (
    FcnConnectionError,
    FcnError,
    FcnTimeoutError,
    InvalidImage,
    InvalidInput,
    LimitExceeded,
    ModelNotReady,
    Overloaded,
    RetryPolicy,
    UnknownModel,
)
from fcn_client.balance import Balance
from service import errors
from tests.unit.client.clients import EITHER, Client, Threaded
from tests.unit.client.fakes import LABELS, SERVERS, Script, refusal
from tests.unit.client.relay import Relay
from tests.waiting import until

BOTH = pytest.mark.parametrize("transport", SERVERS)
IMAGE = b"any bytes do here"
POLICY = RetryPolicy(attempt_s=2.0)


class Three:
    """Three servers and the ways to them."""

    def __init__(self, transport: str, held: ExitStack) -> None:
        self.scripts = [Script(), Script(), Script()]
        urls = [held.enter_context(SERVERS[transport](script)) for script in self.scripts]
        self.relays = [held.enter_context(Relay(url)) for url in urls]
        self.urls = [relay.url for relay in self.relays]

    @property
    def asked(self) -> list[int]:
        return [len(script.asked) for script in self.scripts]


@pytest.fixture
def three(transport: str) -> Iterator[Three]:
    with ExitStack() as held:
        yield Three(transport, held)


@BOTH
@EITHER
def test_one_hangs_one_dies_and_one_lags(three: Three, client_of: Client) -> None:
    hung, dying, lagging = three.relays
    hung.hang()
    three.scripts[2].delay_s = 0.05

    def images() -> Iterator[bytes]:
        for n in range(30):
            if n == 10:
                dying.die()
            yield IMAGE

    with client_of(three.urls, retry=POLICY) as client:
        outcomes = list(client.segment_many(images(), in_flight=4))
        assert [outcome.error for outcome in outcomes] == [None] * 30
        attempts = Counter(outcome.unwrap().attempts for outcome in outcomes)
        # Once for each server, at most: what failed is left alone until it says that it is back.
        assert max(attempts) <= 3
        assert sum(attempts[n] for n in attempts if n > 1) <= 8
        hung.heal()
        dying.revive()
        before = three.asked

        def all_asked() -> bool:
            client.segment(IMAGE)
            return all(now > then for now, then in zip(three.asked, before, strict=True))

        until(all_asked)


@BOTH
@EITHER
def test_the_one_with_the_fewest_requests_is_asked(
    transport: str, three: Three, client_of: Client
) -> None:
    three.scripts[0].delay_s = 1.5  # longer than the others need for all the rest
    with client_of(",".join(three.urls)) as client:
        outcomes = list(client.segment_many([IMAGE] * 15, in_flight=3))
    assert all(outcome.ok for outcome in outcomes)
    slow, *quick = three.asked
    assert slow < min(quick)


@BOTH
@EITHER
def test_another_answers_what_one_has_no_room_or_no_model_for(
    three: Three, client_of: Client
) -> None:
    three.scripts[0].refusals = [refusal(errors.Overloaded)] * 9
    three.scripts[1].refusals = [refusal(errors.UnknownModel)] * 9
    waits: list[float] = []
    with client_of(three.urls) as client:
        client.note_sleep(waits.append)
        results = [client.segment(IMAGE, model="new") for _ in range(6)]
    for result in results:
        np.testing.assert_array_equal(result.value, LABELS)
    assert not any(waits)
    assert three.asked == [1, 1, 6]


@BOTH
@EITHER
@pytest.mark.parametrize("kind", [errors.UnknownModel, errors.InvalidImage])
def test_what_all_refuse_is_refused(
    three: Three, client_of: Client, kind: type[errors.ServiceError]
) -> None:
    """An image that is none is so everywhere; a model may be at another server."""
    for script in three.scripts:
        script.refusals = [refusal(kind)] * 9
    with client_of(three.urls) as client, pytest.raises(FcnError) as raised:
        client.segment(IMAGE)
    model = kind is errors.UnknownModel
    assert type(raised.value) is (UnknownModel if model else InvalidImage)
    assert sum(three.asked) == raised.value.attempts == (3 if model else 1)


@EITHER
@pytest.mark.parametrize("transport", ["grpc"])
def test_a_stream_goes_on_with_another(three: Three, client_of: Client) -> None:
    def images() -> Iterator[bytes]:
        for n in range(12):
            if n == 6:
                until(lambda: any(three.asked))
                for script, relay in zip(three.scripts, three.relays, strict=True):
                    if script.asked:
                        relay.die()
            yield IMAGE

    with client_of(three.urls) as client:
        outcomes = list(client.segment_stream(images(), window=2))
        assert all(outcome.ok for outcome in outcomes)
    assert sorted(three.asked)[0] == 0 and sorted(three.asked)[1] > 0


@BOTH
@EITHER
def test_a_name_stands_for_all_its_addresses(
    transport: str, client_of: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = [Script(), Script()]
    found = ["127.0.0.2"]

    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> list[Any]:
        if host != "fcn.test":
            return list(real(host, *args, **options))
        if not found:
            raise socket.gaierror("nobody knows it")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 0)) for ip in found]

    with ExitStack() as held:
        urls = [held.enter_context(SERVERS[transport](script)) for script in scripts]
        first = held.enter_context(Relay(urls[0], "127.0.0.2"))
        held.enter_context(Relay(urls[1], "127.0.0.3", first.port))
        url = f"{first.url.partition(':')[0]}://fcn.test:{first.port}"
        client: Any = held.enter_context(client_of(url, dns=True))
        monkeypatch.setattr("fcn_client.balance.socket.getaddrinfo", getaddrinfo)
        side = "sync" if client_of is Threaded else "aio"
        monkeypatch.setattr(f"fcn_client.{side}.replicas.RESOLVE_S", 0.0)
        client.segment(IMAGE)
        assert [len(script.asked) for script in scripts] == [1, 0]
        found[:] = ["127.0.0.2", "127.0.0.3"]
        for _ in range(4):
            client.segment(IMAGE)
        assert min(len(script.asked) for script in scripts) >= 2
        found[:] = ["127.0.0.3"]
        client.segment(IMAGE)
        client.segment(IMAGE)
        assert len(scripts[1].asked) >= 4
        found.clear()  # what was known last goes on
        client.segment(IMAGE)
        assert scripts[0].headers[0].get("host", f"fcn.test:{first.port}").startswith("fcn.test:")


@EITHER
def test_a_name_that_nobody_knows(client_of: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror("nobody knows it")

    policy = RetryPolicy(max_attempts=1)
    with client_of("http://fcn.test:8000", dns=True, retry=policy) as client:
        monkeypatch.setattr("fcn_client.balance.socket.getaddrinfo", getaddrinfo)
        with pytest.raises(FcnConnectionError, match=r"addresses of fcn\.test: nobody knows it"):
            client.segment(IMAGE)


@EITHER
@pytest.mark.parametrize(
    "urls", [[], ["http://a:1", "grpc://a:2"], "http://a:1,grpc://a:2", "http://a:1,,"]
)
def test_addresses_that_do_not_fit(client_of: Client, urls: Any) -> None:
    with pytest.raises(InvalidInput, match=r"give addresses of|no server's address"):
        client_of(urls)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pair(clock: Clock) -> Balance[str]:
    balance: Balance[str] = Balance(clock)
    balance.replace(["a", "b"], str)
    return balance


def end(balance: Balance[str], error: FcnError | None, want: object = "m") -> tuple[str, bool]:
    """Sends one request that ends so. Who was asked, and whether as a trial."""
    replica, probe = balance.pick(want, True)
    if probe:
        balance.probed(replica, error)
    balance.done(replica, want, error)
    return replica.name, probe


def test_who_fails_again_is_left_alone_for_longer(clock: Clock, pair: Balance[str]) -> None:
    name, _ = end(pair, FcnConnectionError("gone"))
    failing = next(r for r in pair.replicas if r.name == name)
    rests = []
    for _ in range(6):
        rests.append(failing.rests[None] - clock.now)
        clock.now = failing.rests[None]
        replica, probe = pair.pick("m", True)
        assert (replica is failing, probe) == (True, True)
        assert not pair.pick("m", True)[1]  # one asks, the others do not wait for it
        pair.probed(replica, FcnTimeoutError("still"))
    assert rests == [1, 2, 4, 8, 16, 30]


@pytest.mark.parametrize(
    ("error", "elsewhere", "others_too"),
    [
        (FcnTimeoutError("late"), True, True),
        (Overloaded(retry_after_s=3.0), True, True),
        (UnknownModel(), True, False),
        (ModelNotReady(), True, False),
        (LimitExceeded(), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FcnError) else None,
)
def test_what_an_error_says_of_a_server(
    clock: Clock, pair: Balance[str], error: FcnError, elsewhere: bool, others_too: bool
) -> None:
    """It is left alone for this model, or for the others, too."""
    refusing, _ = end(pair, error)
    assert error.elsewhere == elsewhere
    names = {end(pair, None)[0] for _ in range(4)}
    assert (refusing in names) == (not elsewhere)
    names = {end(pair, None, "other")[0] for _ in range(4)}
    assert (refusing in names) == (not others_too)


def test_an_attempt_gets_its_share_of_the_time(clock: Clock, pair: Balance[str]) -> None:
    assert pair.share_s("m", 8.0, None, 6) == 4.0
    assert pair.share_s("m", 8.0, 0.25, 6) == 0.25
    assert pair.share_s("m", 1.2, None, 6) == 1.0
    assert pair.share_s("m", 8.0, None, 1) == 8.0
    end(pair, FcnConnectionError("gone"))
    assert pair.share_s("m", 8.0, 0.25, 6) == 8.0


def test_where_all_have_failed_the_first_to_come_back_is_asked(
    clock: Clock, pair: Balance[str]
) -> None:
    error = FcnConnectionError("gone")
    first, _ = end(pair, error)
    assert error.elsewhere
    clock.now = 0.5
    last = FcnConnectionError("gone")
    end(pair, last)
    assert not last.elsewhere
    assert pair.pick("m", True)[0].name == first
