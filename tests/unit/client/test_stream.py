"""`segment_stream`: many pictures over one call, each with an end of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_client import (
    AsyncFcnClient,
    DecodeError,
    FcnClient,
    FcnConnectionError,
    FcnError,
    FcnTimeoutError,
    ImageTooLarge,
    InvalidImage,
    InvalidInput,
    NotAuthenticated,
    Outcome,
    Overloaded,
    RetryPolicy,
)
from fcn_client.flow import Flow
from fcn_client.types import RawReply, Timings
from service import errors
from tests.unit.client.fakes import LABELS, Refusal, Script, grpc_server, http_server, refusal

PROXY = Refusal("", None)
QUICK = RetryPolicy(first_wait_s=0.01, max_wait_s=0.02)
Ends = list[Outcome[Any, Any]]


def threads(script: Script, images: list[Any], retry: RetryPolicy = QUICK, **options: Any) -> Ends:
    with grpc_server(script) as url, FcnClient(url, retry=retry, timeout_s=20) as client:
        return list(client.segment_stream(images, **options))


def check(outcome: Outcome[Any, Any], attempts: int = 1) -> None:
    result = outcome.unwrap()
    np.testing.assert_array_equal(result.value, LABELS)
    assert result.attempts == attempts


def test_all_over_one_call(tmp_path: Path) -> None:
    """Of a picture that cannot be read only that one suffers."""
    script = Script([None, refusal(errors.InvalidImage)])
    images = [b"a", b"b", tmp_path / "none.png", b"d"]
    seen = threads(script, images, ordered=True, request_id="film")
    assert [outcome.index for outcome in seen] == [0, 1, 2, 3]
    assert [outcome.image for outcome in seen] == images
    check(seen[0])
    check(seen[3])
    assert seen[3].unwrap().request_id == "film/3"
    wrong = seen[1].error
    assert isinstance(wrong, InvalidImage) and wrong.attempts == 1
    assert (str(wrong), wrong.request_id) == ("Invalid image: do this", "film/1")
    assert (wrong.status, wrong.code) == (400, "INVALID_ARGUMENT")
    assert isinstance(seen[2].error, InvalidInput)
    assert [request["id"] for request in script.asked] == ["0", "1", "3"]
    assert all(19_000 < int(request["deadline_ms"]) <= 20_000 for request in script.asked)


def test_busy_is_sent_again_after_what_it_says() -> None:
    script = Script([refusal(errors.Overloaded, "300"), None, refusal(errors.Overloaded, "20")])
    began = time.monotonic()
    seen = threads(script, [b"a", b"b"])
    assert time.monotonic() - began >= 0.32
    first, second = seen
    assert (first.index, second.index) == (1, 0), "the other one does not wait for it"
    check(first)
    check(second, attempts=3)
    assert [request["id"] for request in script.asked] == ["0", "1", "0.2", "0.3"]


def test_without_a_hint_an_item_is_not_sent_again() -> None:
    (outcome,) = threads(Script([refusal(errors.Overloaded)]), [b"a"])
    assert isinstance(outcome.error, Overloaded) and not outcome.error.retryable


def test_attempts_and_time_are_bounded() -> None:
    script = Script([refusal(errors.Overloaded, "1")] * 9)
    (outcome,) = threads(script, [b"a"], RetryPolicy(max_attempts=3))
    assert outcome.error is not None and outcome.error.attempts == len(script.asked) == 3
    script = Script([refusal(errors.Overloaded, "5000")] * 9)
    (outcome,) = threads(script, [b"a"], deadline_ms=1000)
    assert isinstance(outcome.error, Overloaded) and len(script.asked) == 1


def test_a_call_that_breaks_is_made_anew() -> None:
    """What was answered is not asked for again."""
    script = Script([None, PROXY])
    seen = threads(script, [b"a", b"b", b"c"], ordered=True, window=1)
    check(seen[0])
    check(seen[1], attempts=2)
    check(seen[2])
    script = Script([PROXY] * 9)
    (outcome,) = threads(script, [b"a"], RetryPolicy(max_attempts=2, first_wait_s=0.01))
    assert isinstance(outcome.error, FcnConnectionError) and outcome.error.attempts == 2


def test_only_the_message_that_is_too_large_fails() -> None:
    images = [b"a", bytes(1000), b"c", bytes(2000), b"d"]
    retry = RetryPolicy(max_attempts=1)
    seen = threads(Script(max_bytes=100), images, retry, ordered=True)
    assert [type(o.error) for o in seen if not o.ok] == [ImageTooLarge] * 2
    for index in (0, 2, 4):
        check(seen[index], attempts=1)  # those were not theirs in which another was too large


def test_a_server_that_hangs_is_left_in_time() -> None:
    """One picture without an answer fails; the others go over a new call."""
    script = Script(silent=frozenset({"0"}))
    began = time.monotonic()
    seen = threads(script, [b"a", b"b"], deadline_ms=200)
    assert time.monotonic() - began < 5
    by_index = {outcome.index: outcome for outcome in seen}
    assert isinstance(by_index[0].error, FcnTimeoutError)
    check(by_index[1])


@pytest.mark.parametrize("key", [None, "wrong"])
def test_the_wrong_key_ends_it_all(key: str | None) -> None:
    script = Script(key="s3cret")
    with (
        grpc_server(script) as url,
        FcnClient(url, api_key=key) as client,
        pytest.raises(NotAuthenticated, match="do this"),
    ):
        list(client.segment_stream([b"a", b"b"] * 40))
    assert len(script.asked) == 1


def test_rest_has_no_streams() -> None:
    with (
        http_server(Script()) as url,
        FcnClient(url) as client,
        pytest.raises(InvalidInput, match="grpc://host:8001, or use segment_many"),
    ):
        list(client.segment_stream([b"a"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "give 1 or more"),
        ({"output": "labels"}, "no output 'labels'"),
        ({"deadline_ms": 0}, "deadline_ms is 0"),
        ({"colour": "red"}, "no option colour"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        threads(Script(), [b"a"], **options)


def test_the_source_is_read_no_further_than_the_window() -> None:
    read: list[int] = []

    def endless() -> Iterator[bytes]:
        while True:
            read.append(len(read))
            yield b"a"

    with grpc_server(Script()) as url, FcnClient(url) as client:
        with closing(client.segment_stream(endless(), window=3)) as outcomes:
            for number in range(1, 6):
                check(next(outcomes))
                time.sleep(0.02)
                # The one just handed out made room for another.
                assert len(read) <= number + 3
        names = {thread.name for thread in threading.enumerate()}
        deadline = time.monotonic() + 5
        while any(name.startswith("fcn-client") for name in names) and time.monotonic() < deadline:
            time.sleep(0.01)
            names = {thread.name for thread in threading.enumerate()}
        assert not any(name.startswith("fcn-client") for name in names), "nothing is left running"


def test_a_live_source_holds_up_no_answer() -> None:
    """The next frame comes only when the last one's answer was seen."""
    seen = threading.Semaphore(1)

    def camera() -> Iterator[bytes]:
        for _ in range(4):
            assert seen.acquire(timeout=10)
            yield b"a"

    with grpc_server(Script()) as url, FcnClient(url) as client:
        for outcome in client.segment_stream(camera()):
            check(outcome)
            seen.release()


def test_what_the_source_raises_arrives() -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError("in the source")

    with (
        grpc_server(Script()) as url,
        FcnClient(url) as client,
        pytest.raises(ZeroDivisionError, match="in the source"),
    ):
        list(client.segment_stream(broken()))


def test_an_answer_that_cannot_be_read_fails_its_picture() -> None:
    seen = threads(Script(body=b"?"), [b"a", b"b"], progress=True)
    assert [type(outcome.error) for outcome in seen] == [DecodeError] * 2


async def test_async_is_the_same() -> None:
    async def source() -> AsyncIterator[bytes]:
        for body in (b"a", b"b", b"", b"d"):
            yield body

    script = Script([refusal(errors.Overloaded, "10"), refusal(errors.InvalidImage), None, PROXY])
    with grpc_server(script) as url:
        async with AsyncFcnClient(url, retry=QUICK) as client:
            seen = [o async for o in client.segment_stream(source(), ordered=True, window=2)]
            assert [o.index for o in seen] == [0, 1, 2, 3]
            np.testing.assert_array_equal(seen[0].unwrap().value, LABELS)
            assert seen[0].unwrap().attempts >= 2
            assert isinstance(seen[1].error, InvalidImage)
            assert isinstance(seen[2].error, InvalidInput)
            check(seen[3], attempts=seen[3].unwrap().attempts)
            async with aclosing(client.segment_stream([b"a"] * 50, window=2)) as outcomes:
                check(await anext(outcomes))
        patient = RetryPolicy(max_attempts=50, first_wait_s=0.0)
        async with AsyncFcnClient(url, api_key="x", retry=patient) as client:
            script.key = "y"
            with pytest.raises(NotAuthenticated):
                [o async for o in client.segment_stream([b"a"])]


async def test_async_source_that_raises_and_rest() -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError("in the source")

    with grpc_server(Script(silent=frozenset({"0"}))) as url:
        async with AsyncFcnClient(url) as client:
            with pytest.raises(ZeroDivisionError, match="in the source"):
                [o async for o in client.segment_stream(broken())]
            (outcome,) = [o async for o in client.segment_stream([b"a"], deadline_ms=50)]
            assert isinstance(outcome.error, FcnTimeoutError)
    async with AsyncFcnClient("http://127.0.0.1:9") as client:
        with pytest.raises(InvalidInput, match="segment_many"):
            [o async for o in client.segment_stream([b"a"])]


REPLY = RawReply(b"", "image/png", "", "", "", Timings())


def flow(clock: Callable[[], float], **policy: Any) -> Flow[str]:
    return Flow("label_map", {}, RetryPolicy(**policy), 10.0, ordered=False, clock=clock)


def test_late_answers_to_earlier_attempts_are_passed_over() -> None:
    now = [0.0]
    pictures = flow(lambda: now[0], first_wait_s=0.0)
    pictures.take(0, "a", b"a")
    assert [id for id, _ in pictures.due()] == ["0"]
    pictures.broken(FcnConnectionError("gone"))
    assert [id for id, _ in pictures.due()] == ["0.2"]
    pictures.answered("0", FcnError("of the call that broke"))
    assert list(pictures.pop_ready()) == []
    pictures.answered("0.2", REPLY)
    (settled,) = pictures.pop_ready()
    assert (settled.end, settled.attempts, pictures.idle) == (REPLY, 2, True)


def test_time_can_run_out_while_a_picture_waits_to_be_sent() -> None:
    now = [0.0]
    pictures = flow(lambda: now[0])
    pictures.take(0, "a", b"a")
    now[0] = 11.0
    assert list(pictures.due()) == []
    (settled,) = pictures.pop_ready()
    assert isinstance(settled.end, FcnTimeoutError) and pictures.wait_s() is None
