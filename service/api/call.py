"""Leads one request through its life, whichever transport brought it.

    call = calls.begin("grpc", "Segment", offered_id, time_left=context.time_remaining, address=...)
    try:
        with call:
            call.authenticate(authorization, api_key)
            ...                     # read the message, translate it
            call.uploaded()         # from here the time is ours
            call.answered(await segmenter.segment(image, options, call))
    except BaseException:
        ...                         # print call.outcome, if somebody is left to be told

A call begins with an id and a record, and its block ends with one count and one log line, whatever
happens in it: before a caller is told of a failure, and before gRPC sends the answer. A failure
becomes an `Outcome`, which `http/problem.py` and `grpc/handlers.py` print.

What must hold for every request of every transport attaches here, one file each: the limits of a
caller in `Call.authenticate` and `Call.charge`, where any ServiceError is answered as such; spans,
which begin in `Calls.begin` and are made from the record in `Call.__exit__`; an audit log there,
too, where the record says who asked for what, and how it ended.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from service.api.keys import ADMIN, ANYBODY, PREDICT, Keys, offered
from service.api.limits import NO_LIMITS, Limiter, Limits, Usage
from service.api.status import TABLE, Status, retry_after_s, status_of
from service.core.types import Client, SegmentReply, Timings
from service.errors import Cancelled, DeadlineExceeded, LimitExceeded, NotAllowed, ServiceError
from service.telemetry import RequestRecord, Telemetry
from service.tracing import PARENT, Attributes, Trace, Tracing, trace_of_caller

HEADER: Final = "x-request-id"
"""The header, or metadata, with the id a request is known by in answers and logs."""

MAX_DEADLINE_MS: Final = 3_600_000
"""A request may ask for this much time, over any transport."""

PATIENCE: Final = 0.95
"""Share of FCN_DEADLINE_MS after which an answer that has not come is the service's failure."""

_FAULT: Final = "the server failed: try again, and report the request id if it recurs"
_OK: Final = {"rest": "200", "grpc": "OK"}
# No CR, LF or other character that could forge a header or a log line.
_VALID_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Seeded by the system once. An id is no secret, and asking the system for each cost 31 us.
_random = random.Random()  # nosec B311
_NOTHING: Final[Mapping[str, str]] = {}
_log = logging.getLogger("fcn.call")


def is_valid_id(text: str) -> bool:
    """Says whether it has 1 to 128 of the characters A-Z a-z 0-9 . _ : -, as ids must."""
    return _VALID_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Says how a request failed, for any transport to print.

    status: its row of the table of errors. detail: one sentence for the caller. wait_s: seconds
    before a retry makes sense; None when none does.
    """

    status: Status
    title: str
    detail: str
    request_id: str
    wait_s: int | None = None

    @property
    def text(self) -> str:
        """Gives title and detail in one line, for the log and gRPC's status."""
        return f"{self.title}: {self.detail}"


def outcome_of(error: ServiceError, request_id: str) -> Outcome:
    """Takes everything from the error and its row of the table."""
    return Outcome(status_of(error), error.title, str(error), request_id, retry_after_s(error))


def network_of(address: str) -> str:
    """Returns an IPv4 address, or the /64 of an IPv6 address, all of which one caller may have.

    Source: RFC 6177, section 2.
    """
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


def _no_deadline() -> float | None:
    return None


def _new_id(trace: Trace | None) -> str:
    """Makes an id, which begins with those of the trace and of the request's span, if there are."""
    if trace is None:
        return f"{_random.getrandbits(128):032x}"
    return f"{trace.trace_id}-{trace.span_id or f'{_random.getrandbits(64):016x}'}"


class Calls:
    """Begins calls, with what all of them share."""

    def __init__(
        self,
        telemetry: Telemetry,
        keys: Keys | None,
        *,
        deadline_s: float,
        model_label: Callable[[str | None], str],
        admin_port: int | None = None,
        limits: Limits = NO_LIMITS,
        clock: Callable[[], float] = time.monotonic,
        tracing: Tracing | None = None,
    ) -> None:
        """keys: None lets everybody in. deadline_s: allowed to requests that bring no deadline.
        model_label: names the model of a failed request for metrics, from the name it gave.
        admin_port: the only one that takes requests of the role `admin`; None for all.
        limits: of callers whose key has none of its own, and of each address that needs no key.
        tracing: None makes no spans."""
        self.tracing = tracing
        self.telemetry = telemetry
        self.keys = keys or Keys(None, admin_key=None, rejected=telemetry.rejected)
        self.limiter = Limiter(limits, clock)
        self.limited = self.keys.required or limits != NO_LIMITS
        self.deadline_s = deadline_s
        self.model_label = model_label
        self.admin_port = admin_port

    def begin(
        self,
        transport: str,
        method: str,
        offered_id: str | None = None,
        *,
        time_left: Callable[[], float | None] = _no_deadline,
        address: str = "",
        port: int | None = None,
        carrier: Mapping[str, str] = _NOTHING,
        describe: Callable[[], Attributes] | None = None,
    ) -> Call:
        """Starts the record of one; use it in a `with` block.

        offered_id: the caller's; one that is not usable is replaced, for tracing must not cost
        anyone an answer. time_left: seconds to the transport's own deadline; None without one.
        address: of the connection's other end. port: of its end here, where the admin port may be.
        carrier: headers or metadata, which may name the caller's trace. describe: says what the
        transport knows of it, by OpenTelemetry's names.
        """
        trace: Trace | None = None
        if self.tracing is not None:
            trace = self.tracing.begin(carrier)
        elif PARENT in carrier:
            trace = trace_of_caller(carrier[PARENT])
        if offered_id is None or not is_valid_id(offered_id):
            offered_id = _new_id(trace)
        record = RequestRecord(transport, method, offered_id, _OK[transport])
        record.trace, record.describe = trace, describe
        may_administer = self.admin_port in (None, port)
        return Call(self, record, time_left, network_of(address), may_administer=may_administer)


class Call(Client):
    """Accompanies one request, or one image of a stream, from its first byte to its answer.

    outcome: how it failed, once it has and somebody is left to be told. time_left: seconds to the
    transport's own deadline; None without one. client: whose it is, by key or else by address, for
    its turn among others.
    """

    __slots__ = (
        *("_address", "_asked_model", "_caller", "_calls", "_charged", "_entered"),
        *("_in_parts", "_may_administer", "_usage"),
        *("client", "outcome", "record", "time_left"),
    )

    def __init__(
        self,
        calls: Calls,
        record: RequestRecord,
        time_left: Callable[[], float | None],
        address: str,
        *,
        may_administer: bool = False,
    ) -> None:
        self.record = record
        self._calls = calls
        self.time_left = time_left
        self.client = self._address = address
        self._caller = ANYBODY
        self._usage: Usage | None = None
        self._charged = self._entered = self._in_parts = False
        self._may_administer = may_administer
        self._asked_model: tuple[str | None] | None = None
        self.outcome: Outcome | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._failed(error)
        if self._entered and self._usage is not None:
            self._usage.leave()
        self._calls.telemetry.finished(self.record)
        if self._calls.tracing is not None:
            self._calls.tracing.finished(self.record)

    @property
    def id(self) -> str:
        return self.record.request_id

    def follow(self, timings: Timings) -> object:
        self.record.stages.append(timings)
        return None if self.record.trace is None else self.record.trace.mark

    def authenticate(
        self, authorization: str | None, api_key: str | None, role: str = PREDICT
    ) -> None:
        """Finds out whose key came with the request, and counts it among that caller's.

        authorization, api_key: the headers, or metadata, of those names. role: what the key must be
        good for.

        Raises: NotAuthenticated, NotAllowed, LimitExceeded.
        """
        self.identify(authorization, api_key, role)
        self._enter()

    def identify(self, authorization: str | None, api_key: str | None, role: str = PREDICT) -> None:
        """Does as `authenticate`, for a stream: its parts are counted, and it may stay open.

        Raises: NotAuthenticated, NotAllowed, LimitExceeded.
        """
        keys = self._calls.keys
        if role == PREDICT and not keys.required:
            return
        if role == ADMIN and not self._may_administer:
            # Before any key is looked at, so that none can be guessed here, either.
            raise NotAllowed(
                "this server's models are listed, loaded and unloaded from its own machine alone, "
                f"over REST: send this to port {self._calls.admin_port} of 127.0.0.1"
            )
        found = offered(authorization, api_key)
        self._caller = keys.admit(found, role=role, address=self._address)
        if name := self._caller.name:
            self.record.caller = name
            self.client = f"key {name}"

    def part(self, method: str, request_id: str) -> Call:
        """Begins a call within this one, of the same caller and deadline: one message of a stream.

        Its key is judged by `check_key`, inside the part's own block.
        """
        self._in_parts = True
        record = RequestRecord(self.record.transport, method, request_id, self.record.code)
        record.trace = self.record.trace
        if self._calls.tracing is not None:
            record.trace = self._calls.tracing.part(record.trace)
        part = Call(self._calls, record, self.time_left, self._address)
        part._caller, record.caller = self._caller, self.record.caller
        part.client = self.client
        return part

    def check_key(self) -> None:
        """Lets a part of a stream in, which may outlive its key.

        Raises: NotAuthenticated when the key is known no more, LimitExceeded.
        """
        if self._calls.keys.required:
            self._calls.keys.check(self._caller)
        self._enter()

    def charge(self, pixels: int) -> None:
        """Counts the pixels of one image of the request, before it is decoded.

        Raises: LimitExceeded, for the first only.
        """
        self.record.pixels += pixels
        if self._usage is not None:
            self._usage.take_pixels(pixels, judged=not self._charged)
            self._charged = True

    def limit_headers(self) -> list[tuple[str, str]]:
        """Tells the caller its limits and what is left of them; nothing where it has none."""
        return [] if self._usage is None else self._usage.headers()

    def _enter(self) -> None:
        """Raises: LimitExceeded."""
        if not self._calls.limited:
            return
        self._usage = self._calls.limiter.usage(self.client, self._caller.limits)
        if self._usage is not None:
            self._usage.enter()
            self._entered = True

    def seconds_left(self, asked_s: float | None = None) -> float:
        """Says how long the answer may take: as asked, or as the server is set up, within the
        transport's own deadline. Raises: DeadlineExceeded."""
        allowed_s = self._calls.deadline_s if asked_s is None else asked_s
        left_s = self.time_left()
        if left_s is None:
            return allowed_s
        if left_s <= 0:
            raise DeadlineExceeded("the deadline passed before the call began: allow more time")
        return left_s if asked_s is None else min(asked_s, left_s)

    def asks_for(self, model: str | None) -> None:
        """Remembers the model that the request names, for the metrics should it fail."""
        self._asked_model = (model,)

    def uploaded(self) -> None:
        """Counts time from now: the upload is complete, its speed was the caller's."""
        self.record.restart()
        self.record.timed = self.record.held = True

    def answered(self, reply: SegmentReply) -> None:
        """Notes what answered, how large the image was, and how long each stage took."""
        record = self.record
        record.model, record.timings = reply.model, reply.timings
        record.height, record.width = reply.height, reply.width

    def refuse(self, outcome: Outcome) -> None:
        """Notes that the request ends with this outcome."""
        self._note(outcome.status)
        self.outcome = outcome
        self.record.error = outcome.text

    def _failed(self, error: BaseException) -> None:
        """Makes the outcome of the error; none when nobody is left to be told."""
        if not isinstance(error, Exception):
            # The task was cancelled: the caller left, or gRPC ended the call at its deadline.
            late = self.time_left() == 0
            self._note(TABLE[DeadlineExceeded if late else Cancelled])
            return
        if not isinstance(error, ServiceError):
            ids = {"request_id": self.id}
            if self.record.trace is not None:
                ids["trace_id"] = self.record.trace.trace_id
            _log.error("request %s failed", self.id, exc_info=error, extra={"fields": ids})
            error = ServiceError(_FAULT)
        if isinstance(error, LimitExceeded):
            self._calls.telemetry.limited(self.record.caller, error.limit)
        self.refuse(outcome_of(error, self.id))

    def _note(self, status: Status) -> None:
        record = self.record
        record.kind = status.kind
        record.code = str(status.http) if record.transport == "rest" else status.code.name
        # The caller's mistakes and refusals are quick and would flatter the latency.
        record.timed = record.timed and status.counts_as_latency
        # He waited for the answer, and no longer does.
        late = status == TABLE[DeadlineExceeded]
        gave_up = late or status == TABLE[Cancelled]
        record.held = record.held and (gave_up or status.is_ours)
        # Here alone, for a request of several images is one; but of a stream each message is one.
        if gave_up and not self._in_parts:
            self._calls.telemetry.rejected("deadline" if late else "cancelled")
        # Whoever asks for the answer sooner than the server has it by itself has his own deadline.
        waited_s = time.monotonic() - record.began_s
        ours = waited_s > PATIENCE * self._calls.deadline_s if gave_up else status.is_ours
        record.outcome = "failed" if ours else "caller"
        if self._asked_model is not None:
            record.model = self._calls.model_label(*self._asked_model)
