"""`segment_stream`: many images over one call, each with an end of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
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
from tests.unit.client.clients import EITHER, Awaited, Client, Threaded, later
from tests.unit.client.fakes import LABELS, Refusal, Script, grpc_server, refusal
from tests.waiting import until

PROXY = Refusal("", None)
QUICK = RetryPolicy(first_wait_s=0.01, max_wait_s=0.02)
Ends = list[Outcome[Any, Any]]


def streamed(
    client_of: Client, script: Script, images: Any, retry: RetryPolicy = QUICK, **options: Any
) -> Ends:
    with grpc_server(script) as url, client_of(url, retry=retry, timeout_s=20) as client:
        return list(client.segment_stream(images, **options))


def check(outcome: Outcome[Any, Any], attempts: int = 1) -> None:
    result = outcome.unwrap()
    np.testing.assert_array_equal(result.value, LABELS)
    assert result.attempts == attempts


@EITHER
def test_all_over_one_call(client_of: Client, tmp_path: Path) -> None:
    """Only the image that cannot be read suffers."""
    script = Script([None, refusal(errors.InvalidImage)])
    images = [b"a", b"b", tmp_path / "none.png", b"d"]
    seen = streamed(client_of, script, images, ordered=True, request_id="film")
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


@EITHER
def test_busy_is_sent_again_after_what_it_says(client_of: Client) -> None:
    script = Script([refusal(errors.Overloaded, "300"), None, refusal(errors.Overloaded, "20")])
    began = time.monotonic()
    seen = streamed(client_of, script, [b"a", b"b"])
    assert time.monotonic() - began >= 0.32
    first, second = seen
    assert (first.index, second.index) == (1, 0), "the other one does not wait for it"
    check(first)
    check(second, attempts=3)
    assert [request["id"] for request in script.asked] == ["0", "1", "0.2", "0.3"]


@EITHER
def test_without_a_hint_an_item_is_not_sent_again(client_of: Client) -> None:
    (outcome,) = streamed(client_of, Script([refusal(errors.Overloaded)]), [b"a"])
    assert isinstance(outcome.error, Overloaded) and not outcome.error.retryable


@EITHER
def test_attempts_and_time_are_bounded(client_of: Client) -> None:
    script = Script([refusal(errors.Overloaded, "1")] * 9)
    (outcome,) = streamed(client_of, script, [b"a"], RetryPolicy(max_attempts=3))
    assert outcome.error is not None and outcome.error.attempts == len(script.asked) == 3
    script = Script([refusal(errors.Overloaded, "5000")] * 9)
    (outcome,) = streamed(client_of, script, [b"a"], deadline_ms=1000)
    assert isinstance(outcome.error, Overloaded) and len(script.asked) == 1


@EITHER
def test_a_call_that_breaks_is_made_anew(client_of: Client) -> None:
    """An image that was answered is not asked for again."""
    script = Script([None, PROXY])
    seen = streamed(client_of, script, [b"a", b"b", b"c"], ordered=True, window=1)
    check(seen[0])
    check(seen[1], attempts=2)
    check(seen[2])
    script = Script([PROXY] * 9)
    (outcome,) = streamed(client_of, script, [b"a"], RetryPolicy(max_attempts=2, first_wait_s=0.01))
    assert isinstance(outcome.error, FcnConnectionError) and outcome.error.attempts == 2


@EITHER
def test_only_the_message_that_is_too_large_fails(client_of: Client) -> None:
    images = [b"a", bytes(1000), b"c", bytes(2000), b"d"]
    # With asyncio the status may be lost, see grpc_messages.stream_failure: the next call tells.
    attempts = 1 if client_of is Threaded else 50
    retry = RetryPolicy(max_attempts=attempts, first_wait_s=0.0)
    seen = streamed(client_of, Script(max_bytes=100), images, retry, ordered=True)
    assert [type(o.error) for o in seen if not o.ok] == [ImageTooLarge] * 2
    for index in (0, 2, 4):
        # Those were not theirs in which another was too large.
        assert seen[index].unwrap().attempts <= attempts


@EITHER
def test_a_server_that_hangs_is_left_in_time(client_of: Client) -> None:
    """One image without an answer fails; the others go over a new call."""
    script = Script(silent=frozenset({"0"}))
    seen = streamed(client_of, script, [b"a", b"b"], deadline_ms=200)
    by_index = {outcome.index: outcome for outcome in seen}
    assert isinstance(by_index[0].error, FcnTimeoutError)
    check(by_index[1])


@pytest.mark.parametrize("key", [None, "wrong"])
@EITHER
def test_the_wrong_key_ends_it_all(client_of: Client, key: str | None) -> None:
    """With asyncio a write may fail before the status is read: then the next call tells."""
    script = Script(key="s3cret")
    patient = RetryPolicy(max_attempts=50, first_wait_s=0.0)
    with (
        grpc_server(script) as url,
        client_of(url, api_key=key, retry=patient) as client,
        pytest.raises(NotAuthenticated, match="do this"),
    ):
        list(client.segment_stream([b"a", b"b"] * 40))
    assert client_of is Awaited or len(script.asked) == 1


@EITHER
def test_rest_has_no_streams(client_of: Client) -> None:
    with (
        client_of("http://127.0.0.1:9") as client,
        pytest.raises(InvalidInput, match="grpc://host:8001, or use segment_many"),
    ):
        list(client.segment_stream([b"a"]))


@EITHER
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "give 1 or more"),
        ({"output": "labels"}, "no output 'labels'"),
        ({"deadline_ms": 0}, "deadline_ms is 0"),
        ({"colour": "red"}, "no option colour"),
    ],
)
def test_wrong_options(client_of: Client, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        streamed(client_of, Script(), [b"a"], **options)


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
        until(lambda: not [t for t in threading.enumerate() if t.name.startswith("fcn-client")])


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


@EITHER
def test_what_the_source_raises_arrives(client_of: Client) -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError("in the source")

    with pytest.raises(ZeroDivisionError, match="in the source"):
        streamed(client_of, Script(silent=frozenset({"0"})), broken())


@EITHER
def test_an_answer_that_cannot_be_read_fails_its_image(client_of: Client) -> None:
    seen = streamed(client_of, Script(body=b"?"), [b"a", b"b"], progress=True)
    assert [type(outcome.error) for outcome in seen] == [DecodeError] * 2


async def test_an_async_source_and_a_caller_who_leaves() -> None:
    script = Script([refusal(errors.Overloaded, "10"), refusal(errors.InvalidImage), None, PROXY])
    with grpc_server(script) as url:
        async with AsyncFcnClient(url, retry=QUICK) as client:
            images = later([b"a", b"b", b"", b"d"])
            seen = [o async for o in client.segment_stream(images, ordered=True, window=2)]
            assert [o.index for o in seen] == [0, 1, 2, 3]
            assert seen[0].unwrap().attempts >= 2
            assert isinstance(seen[1].error, InvalidImage)
            assert isinstance(seen[2].error, InvalidInput)
            check(seen[3], attempts=seen[3].unwrap().attempts)
            async with aclosing(client.segment_stream([b"a"] * 50, window=2)) as outcomes:
                check(await anext(outcomes))
    assert [task for task in asyncio.all_tasks() if "fcn-client" in task.get_name()] == []


REPLY = RawReply(b"", "image/png", "", "", "", Timings())


def flow(clock: Callable[[], float], **policy: Any) -> Flow[str]:
    return Flow("label_map", {}, RetryPolicy(**policy), 10.0, ordered=False, clock=clock)


def test_late_answers_to_earlier_attempts_are_passed_over() -> None:
    now = [0.0]
    images = flow(lambda: now[0], first_wait_s=0.0)
    images.take(0, "a", b"a")
    assert [id for id, _ in images.due()] == ["0"]
    images.broken(FcnConnectionError("gone"))
    assert [id for id, _ in images.due()] == ["0.2"]
    images.answered("0", FcnError("of the call that broke"))
    assert list(images.pop_ready()) == []
    images.answered("0.2", REPLY)
    (through,) = images.pop_ready()
    assert (through.end, through.attempts, images.idle) == (REPLY, 2, True)


def test_time_can_run_out_while_an_image_waits_to_be_sent() -> None:
    now = [0.0]
    images = flow(lambda: now[0])
    images.take(0, "a", b"a")
    now[0] = 11.0
    assert list(images.due()) == []
    (through,) = images.pop_ready()
    assert isinstance(through.end, FcnTimeoutError) and images.wait_s() is None
