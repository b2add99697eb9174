"""The client's exceptions: Python's own where there are any, and the server's kinds."""

from __future__ import annotations

import pickle
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

import fcn_client
from fcn_client import (
    DeadlineExceeded,
    DecodeError,
    FcnConnectionError,
    FcnError,
    FcnTimeoutError,
    ImageTooLarge,
    InvalidInput,
    NotAllowed,
    NotAuthenticated,
    Overloaded,
    ServerError,
)
from fcn_client.errors import KINDS, TYPE_PREFIX
from fcn_client.grpc_messages import failure
from fcn_client.problems import from_document, from_item, from_status
from service.api.status import TABLE


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (InvalidInput("no image"), ValueError),
        (FcnTimeoutError("too late"), TimeoutError),
        (DeadlineExceeded("too late"), TimeoutError),
        (FcnConnectionError("gone"), ConnectionError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FcnError) else "",
)
def test_pythons_own_classes_catch_them(error: FcnError, builtin: type[Exception]) -> None:
    assert isinstance(error, builtin)
    assert str(error).endswith(error.args[0])
    assert getattr(error, "errno", None) is None


def test_names_of_version_0_1_still_catch() -> None:
    assert fcn_client.TimedOut is FcnTimeoutError
    assert fcn_client.Unreachable is FcnConnectionError
    assert fcn_client.UnusableInput is InvalidInput
    assert fcn_client.UnreadableAnswer is DecodeError


def test_kinds_are_the_servers() -> None:
    """A kind that the server gains is a plain ServerError here, until it has a class."""
    rows = {row.kind: row.http for row in TABLE.values()}
    titles = {row.kind: error.title for error, row in TABLE.items()}
    assert len(KINDS) >= 18
    for kind, error in KINDS.items():
        assert rows[kind] == error.status
        assert titles[kind] == error.title or kind == "internal-error"


@pytest.mark.parametrize("error", KINDS.values(), ids=KINDS)
def test_a_class_alone_says_what_it_is(error: type[ServerError]) -> None:
    made = error("do this")
    assert str(made) == f"{error.title}: do this"
    assert (made.type, made.status) == (TYPE_PREFIX + error.kind, error.status)
    assert made.retryable == (error.status in (429, 503))


def test_errors_travel_between_processes() -> None:
    sent = from_document(429, b"<h1>busy", retry_after_s=2.0, request_id="7", reason="Too Many")
    sent.attempts = 3
    got = pickle.loads(pickle.dumps(sent))
    assert (str(got), got.status, got.attempts) == ("HTTP 429 Too Many", 429, 3)
    assert (got.request_id, got.retry_after_s, got.retryable) == ("7", 2.0, True)
    late = pickle.loads(pickle.dumps(DeadlineExceeded("after 5 s", request_id="8")))
    assert (str(late), late.request_id) == ("Deadline exceeded: after 5 s", "8")


class RpcError(grpc.RpcError):
    """A failed call, as grpc raises it, with these status details."""

    def __init__(self, code: grpc.StatusCode, text: str, *details: AnyMessage, **more: str) -> None:
        self._code, self._text = code, text
        status = status_pb2.Status(code=code.value[0], message=text, details=details)
        self._trailing = {"grpc-status-details-bin": status.SerializeToString(), **more}

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> Any:
        return tuple(self._trailing.items())


def packed(message: Message) -> AnyMessage:
    found = AnyMessage()
    found.Pack(message)
    return found


def info(kind: str, domain: str = "fcn-serve") -> AnyMessage:
    return packed(error_details_pb2.ErrorInfo(reason=kind, domain=domain))


BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED


def test_status_details_say_the_kind_and_the_wait() -> None:
    """Whatever the title says, which may be reworded."""
    retry = packed(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)))
    found = failure(RpcError(BUSY, "Voll: spaeter", info("overloaded"), retry), "7")
    assert type(found) is Overloaded and found.retryable
    assert (found.retry_after_s, found.title, found.detail) == (2.5, "Voll", "spaeter")
    assert (found.type, found.status) == ("urn:fcn:problem:overloaded", 429)
    assert (found.code, found.request_id) == ("RESOURCE_EXHAUSTED", "7")


def test_a_kind_of_a_newer_server_is_a_plain_server_error() -> None:
    found = failure(RpcError(BUSY, "Rate limited: wait", info("rate-limited")), "7")
    assert type(found) is ServerError
    assert (found.type, found.title, found.status) == (
        "urn:fcn:problem:rate-limited",
        "Rate limited",
        429,
    )


def test_details_that_are_not_ours_are_passed_over() -> None:
    """Another service's reasons, what is no google.rpc.Status, and another call's."""
    other = RpcError(BUSY, "quota", info("overloaded", "googleapis.com"))
    garbled = RpcError(BUSY, "quota", **{"grpc-status-details-bin": "x"})
    garbled._trailing["grpc-status-details-bin"] = b"\xff\xff"
    mixed = RpcError(BUSY, "quota", info("overloaded"))
    mixed._text = "another text"
    for error in (other, garbled, mixed):
        found = failure(error, "7")
        assert type(found) is ServerError and found.type == "about:blank"


def test_a_server_of_version_0_1_tells_by_its_titles() -> None:
    found = from_status("RESOURCE_EXHAUSTED", "Overloaded: come back", retry_after_s=1.0)
    assert type(found) is Overloaded and found.retry_after_s == 1.0


def test_a_message_too_large_for_grpc_is_a_large_image() -> None:
    found = from_status("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (9 vs. 5)")
    assert isinstance(found, ImageTooLarge) and not found.retryable
    assert "scale it down" in str(found)


def test_a_proxys_refusals_have_the_same_classes() -> None:
    """A proxy may ask for the key in its own words."""
    for status, code, error in (
        (401, "UNAUTHENTICATED", NotAuthenticated),
        (403, "PERMISSION_DENIED", NotAllowed),
    ):
        over_rest = from_document(status, b"<h1>no", retry_after_s=None, request_id="1")
        over_grpc = from_status(code, "go away")
        in_stream = from_item(code, "go away", "", retry_after_s=None, request_id="1")
        assert type(over_rest) is type(over_grpc) is type(in_stream) is error
        assert not over_rest.retryable and not over_grpc.retryable
    late = from_document(504, b"<h1>late", retry_after_s=None, request_id="1")
    assert isinstance(late, DeadlineExceeded) and isinstance(late, FcnTimeoutError)
    assert from_document(502, b"<h1>no server", retry_after_s=None, request_id="1").retryable
