"""Requests are asked again, when and as often as they may be; others are not."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from fcn_client import (
    DeadlineExceeded,
    FcnConnectionError,
    FcnError,
    FcnTimeoutError,
    Overloaded,
    RetryPolicy,
    ServerError,
)
from fcn_client.errors import KINDS
from fcn_client.http_messages import retry_after_s, timings_of
from fcn_client.retry import RetryBudget
from fcn_client.types import Timings
from service import errors
from service.api.status import TABLE, TYPE_PREFIX
from tests.unit.client.clients import EITHER, Client, Threaded
from tests.unit.client.fakes import LABELS, SERVERS, Refusal, Script, refusal

BOTH = pytest.mark.parametrize("transport", SERVERS)
IMAGE = b"any bytes do here"
PROXY = Refusal("", None)
# The root of the errors is told under the words of the 500 handler: see test_errors.py.
FINAL = [k for k, row in TABLE.items() if not row.retry and row.kind in KINDS]
FINAL.remove(errors.ServiceError)


def asked(
    transport: str,
    script: Script,
    policy: RetryPolicy | None = None,
    deadline_ms: float | None = None,
    client_of: Client = Threaded,
) -> tuple[FcnError | None, int, list[float]]:
    """The error, if that is the end of it; the attempts; and the waits between them."""
    waits: list[float] = []
    with SERVERS[transport](script) as url, client_of(url, retry=policy) as client:
        client.note_sleep(waits.append)
        try:
            result = client.segment(IMAGE, deadline_ms=deadline_ms)
        except FcnError as error:
            return error, error.attempts, waits
        np.testing.assert_array_equal(result.value, LABELS)
        return None, result.attempts, waits


@BOTH
@EITHER
def test_busy_is_asked_again_after_what_it_says(transport: str, client_of: Client) -> None:
    wait = {"rest": "2", "grpc": "2000"}[transport]
    script = Script([refusal(errors.Overloaded, wait), refusal(errors.ShuttingDown, wait)])
    error, attempts, waits = asked(transport, script, client_of=client_of)
    assert (error, attempts) == (None, 3)
    # Retry-After in full, and a draw of at most 0.2 s, then 0.4 s, on top.
    assert 2.0 <= waits[0] <= 2.2 and 2.0 <= waits[1] <= 2.4
    assert len({request["id"] for request in script.asked}) == 1


@BOTH
@EITHER
def test_without_a_hint_the_waits_grow(transport: str, client_of: Client) -> None:
    policy = RetryPolicy(max_attempts=5, first_wait_s=0.1, max_wait_s=0.3)
    error, attempts, waits = asked(transport, Script([PROXY] * 9), policy, client_of=client_of)
    assert attempts == 5
    assert isinstance(error, ServerError if transport == "rest" else FcnConnectionError)
    for wait, most in zip(waits, (0.1, 0.2, 0.3, 0.3), strict=True):
        assert 0.0 <= wait <= most


@BOTH
@pytest.mark.parametrize("kind", FINAL, ids=lambda kind: kind.__name__)
def test_what_cannot_succeed_is_not_asked_again(
    transport: str, kind: type[errors.ServiceError]
) -> None:
    error, attempts, waits = asked(transport, Script([refusal(kind)] * 9))
    assert isinstance(error, ServerError)
    assert (attempts, waits) == (1, [])
    row = TABLE[kind]
    assert (error.type, error.status) == (TYPE_PREFIX + row.kind, row.http)
    assert (error.title, error.detail) == (kind.title, "do this")
    assert (error.request_id, error.instance) == ("7", "urn:fcn:request:7")
    assert error.code == ("" if transport == "rest" else row.code.name)
    assert type(error) is KINDS[row.kind]
    assert isinstance(error, FcnTimeoutError) == isinstance(error, DeadlineExceeded)


@BOTH
@EITHER
def test_no_wait_goes_past_the_deadline(transport: str, client_of: Client) -> None:
    """The refusal itself is the answer when there is no time to come back as asked."""
    wait = {"rest": "5", "grpc": "5000"}[transport]
    script = Script([refusal(errors.Overloaded, wait)] * 9)
    error, attempts, waits = asked(transport, script, deadline_ms=2000, client_of=client_of)
    assert isinstance(error, Overloaded)
    assert (error.retry_after_s, attempts, waits) == (5.0, 1, [])


@BOTH
@EITHER
def test_a_server_that_hangs_is_left_in_time(transport: str, client_of: Client) -> None:
    script = Script(delay_s=1.2)
    error, attempts, _ = asked(transport, script, deadline_ms=100, client_of=client_of)
    assert isinstance(error, FcnTimeoutError) and attempts == 1
    assert "allow more" in str(error)


@BOTH
@EITHER
def test_nobody_there(transport: str, client_of: Client) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scheme = {"rest": "http", "grpc": "grpc"}[transport]
    policy = RetryPolicy(max_attempts=2, first_wait_s=0.0)
    with client_of(f"{scheme}://127.0.0.1:{port}", retry=policy) as client:
        with pytest.raises(FcnConnectionError, match="cannot reach") as raised:
            client.segment(IMAGE)
        assert raised.value.attempts == 2
        assert f"127.0.0.1:{port}" in str(raised.value) and "UNKNOWN" not in str(raised.value)
        assert not client.ready()


@BOTH
@EITHER
def test_connections_are_kept(transport: str, client_of: Client) -> None:
    script = Script([refusal(errors.InvalidImage)])
    with SERVERS[transport](script) as url, client_of(url) as client:
        for outcome in client.segment_many([IMAGE] * 5, in_flight=1):
            assert outcome.ok == (outcome.index > 0)
    assert len(script.asked) == 5 and len(script.connections) == 1


def test_grpc_says_when_not_to_retry() -> None:
    error, attempts, _ = asked("grpc", Script([refusal(errors.Overloaded, "-1")] * 9))
    assert isinstance(error, Overloaded) and attempts == 1 and not error.retryable


def test_time_is_up_between_attempts() -> None:
    now = iter((0.0, 5.0))
    budget = RetryBudget(RetryPolicy(), 5.0, clock=lambda: next(now))
    with pytest.raises(FcnTimeoutError, match="allow more"):
        budget.begin()


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"first_wait_s": -1}, {"max_wait_s": -1}])
def test_wrong_policy(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="want max_attempts of 1 or more"):
        RetryPolicy(**wrong)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
        ("soon", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, now_s=60.0) == seconds


def test_server_timing() -> None:
    text = "decode;dur=1.5, cdn;desc=x, queue;desc=y;dur=2, infer;dur=x, render"
    assert timings_of(text) == Timings(0.0015, 0.002, 0.0, 0.0)
