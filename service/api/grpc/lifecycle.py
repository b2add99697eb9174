"""A gRPC call from beginning to end: id, message, deadline, record, row of the table of errors."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import aio

from service.api.keys import Caller, Keys
from service.api.request_id import HEADER, request_id
from service.api.status import TYPE_PREFIX, counts_as_latency, retry_after_s, status_of
from service.api.stubs import segmentation_pb2 as pb
from service.errors import DeadlineExceeded, InvalidParameter, ServiceError
from service.telemetry import RequestRecord

PUSHBACK: Final = "grpc-retry-pushback-ms"
"""Trailing metadata that gRPC's own retry policy obeys; negative means do not retry.

Source: gRPC proposal A6, client retries.
"""

_log = logging.getLogger("fcn.grpc")
Context = aio.ServicerContext[Any, Any]
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who made the call being served, where that takes an API key."""

    keys: Keys
    caller: Caller


ADMITTED: Final[ContextVar[Admitted | None]] = ContextVar("admitted", default=None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request failed. kind: last part of the problem's `type`. wait_s: seconds before a retry
    makes sense; None when none does."""

    code: grpc.StatusCode
    kind: str
    text: str
    wait_s: int | None = None

    def item_error(self) -> pb.ItemError:
        return pb.ItemError(
            code=self.code.value[0],
            message=self.text,
            type=TYPE_PREFIX + self.kind,
            retry_after_ms=None if self.wait_s is None else 1000 * self.wait_s,
        )


def begin(method: str, context: Context) -> RequestRecord:
    """The call's record, with the caller's request id if it brought a good one."""
    offered = next((v for k, v in context.invocation_metadata() or () if k == HEADER), None)
    record = RequestRecord(
        "grpc", method, request_id(offered if isinstance(offered, str) else None)
    )
    record.code = grpc.StatusCode.OK.name
    record.caller = caller_name()
    context.set_trailing_metadata(((HEADER, record.request_id),))
    return record


def caller_name() -> str:
    """Of the call being served; "" where no key is asked for."""
    admitted = ADMITTED.get()
    return admitted.caller.name if admitted else ""


def check_key() -> None:
    """For every message of a stream, which may outlive its key. Raises: NotAuthenticated."""
    if (admitted := ADMITTED.get()) is not None:
        admitted.keys.check(admitted.caller)


def outcome(error: BaseException, record: RequestRecord, context: Context) -> Outcome | None:
    """What the caller is told, noted in the record too; None when nobody is left to be told."""
    if isinstance(error, ServiceError):
        row = status_of(error)
        record.timed = record.timed and counts_as_latency(row.http)
        end = Outcome(row.code, row.kind, f"{error.title}: {error}", retry_after_s(error))
    elif isinstance(error, Exception):
        _log.error("call %s failed", record.request_id, exc_info=error)
        text = "Internal error: try again, and report the request id if it recurs"
        end = Outcome(grpc.StatusCode.INTERNAL, status_of(ServiceError()).kind, text)
    else:
        # The caller left, or gRPC ended the call at its deadline.
        late = context.time_remaining() == 0
        code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        record.code, record.timed = code.name, record.timed and late
        return None
    record.code, record.error = end.code.name, end.text
    return end


async def fail(error: BaseException, record: RequestRecord, context: Context) -> NoReturn:
    """Ends the call with the error's row of the table. Always raises."""
    end = outcome(error, record, context)
    if end is None:
        raise error
    metadata = [(HEADER, record.request_id)]
    if end.wait_s is not None:
        metadata.append((PUSHBACK, str(1000 * end.wait_s)))
    await context.abort(end.code, end.text, tuple(metadata))
    raise error  # unreachable: abort raises


def seconds_left(context: Context, own_s: float) -> float:
    """Seconds from now to the deadline of the call, or `own_s`, the server's, where it has none.

    Raises: DeadlineExceeded.
    """
    left_s = context.time_remaining()
    if left_s is not None and left_s <= 0:
        raise DeadlineExceeded("the deadline passed before the call began: allow more time")
    return own_s if left_s is None else left_s


async def only(requests: AsyncIterator[M], name: str, malformed: str) -> M:
    """The one message, a `name`, of a call that is read as a stream.

    Raises: InvalidParameter without any, or with the words `malformed` when it is none.
    """
    try:
        async for request in requests:
            return request
    except DecodeError:
        raise InvalidParameter(malformed) from None
    raise InvalidParameter(f"the call has no message: send one {name}")
