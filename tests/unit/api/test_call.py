"""The life of a request without a transport: one count, one log line, one outcome."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
from grpc import aio
from starlette.types import Message, Receive, Scope, Send

from service.api.call import Calls, Outcome
from service.api.grpc.handlers import handle
from service.api.http.middleware import RequestMiddleware
from service.api.keys import Keys
from service.core.types import SegmentReply, Timings
from service.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    InvalidImage,
    LimitExceeded,
    ModelNotReady,
    NotAuthenticated,
    Overloaded,
    ShuttingDown,
)
from service.telemetry import Telemetry

KEY = "alice-has-this-key"


def calls(telemetry: Telemetry | None = None, keys: Keys | None = None) -> Calls:
    return Calls(
        telemetry or Telemetry(0.175),
        keys,
        deadline_s=30.0,
        model_label=lambda name: {None: "tiny", "tiny": "tiny"}.get(name, ""),
    )


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    path = tmp_path / "keys"
    path.write_text(f"alice {KEY}\n")
    return Keys(path, admin_key=None, rejected=lambda reason: None)


def requests(telemetry: Telemetry) -> dict[str, str]:
    """Labels and value of each `fcn_requests_total`."""
    found = re.findall(r"^fcn_requests_total{(.*)} (.*)$", telemetry.scrape().decode(), re.M)
    return dict(found)


def reply() -> SegmentReply:
    label_map = np.zeros((2, 3), np.uint8)
    return SegmentReply(b"", "", 2, 3, "tiny", "1", label_map, Timings(0.1, 0.2, 0.3, 0.4))


@pytest.mark.parametrize(
    ("offered", "kept"),
    [("job-7", True), ("a.B_c:9", True), ("n" * 128, True), ("n" * 129, False), ("", False)]
    + [("two words", False), ("line\nbreak", False), (None, False)],
)
def test_an_id_is_kept_if_it_is_usable(offered: str | None, kept: bool) -> None:
    with calls().begin("rest", "Segment", offered) as call:
        assert (call.id == offered) is kept
        assert kept or re.fullmatch("[0-9a-f]{32}", call.id)


@pytest.mark.parametrize(("transport", "code"), [("rest", "200"), ("grpc", "OK")])
def test_an_answer_is_counted_and_logged_once(
    transport: str, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = Telemetry(0.175)
    with (
        caplog.at_level(logging.INFO, "fcn.request"),
        calls(telemetry).begin(transport, "Segment", "job-7") as call,
    ):
        call.uploaded()
        call.answered(reply())
    labels = f'code="{code}",method="Segment",model="tiny",transport="{transport}"'
    assert requests(telemetry) == {labels: "1.0"}
    (line,) = caplog.records
    fields = line.__dict__["fields"]
    assert (fields["request_id"], fields["height"], fields["infer_ms"]) == ("job-7", 2, 300.0)
    assert f'duration_seconds_count{{model="tiny",transport="{transport}"}} 1.0' in (
        telemetry.scrape().decode()
    )


@pytest.mark.parametrize(
    ("error", "http", "code", "kind", "timed"),
    [
        (InvalidImage("no"), "400", "INVALID_ARGUMENT", "invalid-image", False),
        (Overloaded(2.0), "429", "RESOURCE_EXHAUSTED", "overloaded", False),
        (DeadlineExceeded("late"), "504", "DEADLINE_EXCEEDED", "deadline-exceeded", True),
        (InferenceFailed(), "500", "INTERNAL", "inference-failed", True),
        (KeyError("ours"), "500", "INTERNAL", "internal-error", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_failure_is_counted_once(
    transport: str, error: Exception, http: str, code: str, kind: str, timed: bool
) -> None:
    telemetry = Telemetry(0.175)
    call = calls(telemetry).begin(transport, "Segment")
    with pytest.raises(type(error)), call:
        call.asks_for(None)
        call.uploaded()
        raise error
    told = http if transport == "rest" else code
    labels = f'code="{told}",method="Segment",model="tiny",transport="{transport}"'
    assert requests(telemetry) == {labels: "1.0"}
    outcome = call.outcome
    assert isinstance(outcome, Outcome)
    assert (str(outcome.status.http), outcome.status.code.name) == (http, code)
    assert (outcome.status.kind, outcome.wait_s) == (kind, 2 if kind == "overloaded" else None)
    assert (
        "duration_seconds_count" in telemetry.scrape().decode().partition("_stage_")[0]
    ) is timed


@pytest.mark.parametrize(
    ("error", "waited_s", "outcome"),
    [
        (InvalidImage("no"), 0, "caller"),
        (LimitExceeded("no", 1.0, "requests"), 0, "caller"),
        (Cancelled(), 1, "caller"),
        (asyncio.CancelledError(), 1, "caller"),
        (DeadlineExceeded("his own"), 1, "caller"),
        (DeadlineExceeded("ours"), 30, "failed"),
        (asyncio.CancelledError(), 30, "failed"),
        (Overloaded(2.0), 0, "failed"),
        (ModelNotReady("no"), 0, "failed"),
        (ShuttingDown(), 0, "failed"),
        (InferenceFailed(), 0, "failed"),
        (KeyError("ours"), 0, "failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_whose_doing_a_failure_is(error: BaseException, waited_s: int, outcome: str) -> None:
    """Callers who leave, and deadlines of their own, are no failure until the server's passes."""
    call = calls().begin("rest", "Segment")
    with pytest.raises(type(error)), call:
        call.uploaded()
        call.record.began_s -= waited_s
        raise error
    assert call.record.outcome == outcome
    assert call.record.held is (waited_s > 0 or outcome == "failed")


def test_the_pixels_of_all_images_of_a_request_are_counted() -> None:
    with calls().begin("rest", "ModelInfer") as call:
        call.charge(3)
        call.charge(4)
    assert (call.record.pixels, call.record.outcome) == (7, "answered")


def test_a_made_up_model_is_no_label() -> None:
    telemetry = Telemetry(0.175)
    call = calls(telemetry).begin("grpc", "Segment")
    with pytest.raises(InvalidImage), call:
        call.asks_for("made-up")
        raise InvalidImage("no")
    assert [labels for labels in requests(telemetry) if 'model=""' in labels]


def test_a_fault_of_our_own_is_told_in_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    call = calls().begin("rest", "Segment", "job-7")
    with pytest.raises(RuntimeError), call:
        raise RuntimeError("a secret")
    outcome = call.outcome
    assert outcome is not None
    assert "report the request id" in outcome.detail and "secret" not in outcome.text
    (line,) = (record for record in caplog.records if record.name == "fcn.call")
    assert line.getMessage() == "request job-7 failed"
    assert line.exc_info and "a secret" in str(line.exc_info[1])


@pytest.mark.parametrize(
    ("transport", "left_s", "code"),
    [("rest", None, "499"), ("grpc", 3.0, "CANCELLED"), ("grpc", 0.0, "DEADLINE_EXCEEDED")],
)
def test_nobody_is_told_of_a_cancelled_call(
    transport: str, left_s: float | None, code: str
) -> None:
    telemetry = Telemetry(0.175)
    call = calls(telemetry).begin(transport, "Segment", time_left=lambda: left_s)
    with pytest.raises(asyncio.CancelledError), call:
        raise asyncio.CancelledError
    assert call.outcome is None
    (labels,) = requests(telemetry)
    assert f'code="{code}"' in labels


@pytest.mark.parametrize(
    ("left_s", "asked_s", "seconds"),
    [(None, None, 30.0), (None, 60.0, 60.0), (5.0, None, 5.0), (90.0, None, 90.0)]
    + [(5.0, 2.0, 2.0), (5.0, 9.0, 5.0)],
)
def test_the_time_an_answer_may_take(
    left_s: float | None, asked_s: float | None, seconds: float
) -> None:
    with calls().begin("grpc", "Segment", time_left=lambda: left_s) as call:
        assert call.seconds_left(asked_s) == seconds


def test_a_deadline_that_has_passed() -> None:
    with (
        pytest.raises(DeadlineExceeded, match="before the call began"),
        calls().begin("grpc", "Segment", time_left=lambda: 0.0) as call,
    ):
        call.seconds_left()


def test_the_key_says_who_calls(keys: Keys) -> None:
    with calls(keys=keys).begin("rest", "Segment") as call:
        call.authenticate(None, KEY)
        assert call.record.caller == "alice"
        call.check_key()
        with call.part("Segment", "job/1") as part:
            assert (part.id, part.record.caller) == ("job/1", "alice")
            part.check_key()
    with calls().begin("rest", "Segment") as call:
        call.authenticate(None, None)  # where nobody is asked for one
        call.check_key()


def test_a_wrong_key_ends_the_call_like_any_error(keys: Keys) -> None:
    telemetry = Telemetry(0.175)
    with (
        pytest.raises(NotAuthenticated),
        calls(telemetry, keys).begin("grpc", "Segment") as call,
    ):
        call.authenticate(None, "wrong")
    (labels,) = requests(telemetry)
    assert 'code="UNAUTHENTICATED"' in labels


def test_a_stream_outlives_its_key(keys: Keys, tmp_path: Path) -> None:
    with calls(keys=keys).begin("grpc", "SegmentStream") as call:
        call.authenticate(f"Bearer {KEY}", None)
        (tmp_path / "keys").write_text("bob another-key-of-sixteen\n")
        keys.look()
        keys.look()
        with pytest.raises(NotAuthenticated, match="no longer valid"):
            call.part("Segment", "1").check_key()


class Context:
    """gRPC's, of a call that has ended meanwhile."""

    left_s = 5.0

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def set_trailing_metadata(self, trailers: object) -> None: ...

    def time_remaining(self) -> float:
        return self.left_s

    def peer(self) -> str:
        return "ipv4:127.0.0.1:5000"

    async def abort(self, *status: object) -> None:
        raise aio.InternalError("Failed execute_batch")


async def test_a_refusal_after_the_end_is_no_fault() -> None:
    """gRPC would log what comes out of the handler, with its traceback, as an error of ours."""
    telemetry = Telemetry(0.175)

    async def work(call: object) -> None:
        raise Overloaded(1.0)

    with pytest.raises(asyncio.CancelledError):
        await handle(calls(telemetry), "Segment", Context(), work)  # type: ignore[arg-type]
    labels = 'code="RESOURCE_EXHAUSTED",method="Segment",model="",transport="grpc"'
    assert requests(telemetry) == {labels: "1.0"}


async def test_a_message_written_after_the_end_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """gRPC's deadline may pass between an answer and its way out."""
    telemetry, context = Telemetry(0.175), Context()

    async def work(call: object) -> None:
        context.left_s = 0.0
        raise aio.InternalError("Failed execute_batch")

    with pytest.raises(asyncio.CancelledError):
        await handle(calls(telemetry), "SegmentStream", context, work)  # type: ignore[arg-type]
    labels = 'code="DEADLINE_EXCEEDED",method="SegmentStream",model="",transport="grpc"'
    assert requests(telemetry) == {labels: "1.0"}
    assert "Traceback" not in caplog.text and "failed" not in caplog.text


async def test_a_refused_call_lets_its_message_go() -> None:
    """The garbage collector may be long in coming, and messages are large."""

    class Upload:
        """Something that can be watched."""

    class Aborting(Context):
        error: Exception | None = None

        async def abort(self, *status: object) -> None:
            try:
                raise aio.AbortError("Locally aborted.")
            except aio.AbortError as error:
                self.error = error  # gRPC's call and its error keep each other
                raise

    seen: list[weakref.ref[Upload]] = []

    async def work(call: object) -> None:
        message = Upload()
        seen.append(weakref.ref(message))
        raise Overloaded(1.0)

    context = Aborting()
    gc.disable()
    try:
        with pytest.raises(aio.AbortError):
            await handle(calls(), "Segment", context, work)  # type: ignore[arg-type]
        assert seen[0]() is None
    finally:
        gc.enable()


async def test_a_refused_request_lets_its_body_go() -> None:
    class Body:
        """Something that can be watched."""

    seen: list[weakref.ref[Body]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = Body()
        seen.append(weakref.ref(body))
        future = asyncio.get_running_loop().create_future()
        future.set_exception(Overloaded(1.0))
        await future  # which keeps its error, and so this frame, and so itself

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "client": None}
    gc.disable()
    try:
        await RequestMiddleware(app, calls())(scope, asyncio.Event().wait, send)  # type: ignore[arg-type]
        assert sent[0]["status"] == 429
        assert seen[0]() is None
    finally:
        gc.enable()
