"""The one table: what each domain error is on the wire, over HTTP and over gRPC."""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import grpc

from service import errors
from service.api.http.parameters import NotAcceptable


@dataclass(frozen=True, slots=True)
class Status:
    """http: status code. code: gRPC's. kind: last part of the problem's `type`.

    retry: whether the same request may succeed later, here or at another replica.
    """

    http: int
    code: grpc.StatusCode
    kind: str
    retry: bool = False


CLIENT_CLOSED_REQUEST: Final = 499
"""Not sent, only counted: nobody is left to read it. Source: nginx, ngx_http_request.h."""

_C = grpc.StatusCode
TABLE: Final[dict[type[errors.ServiceError], Status]] = {
    errors.InvalidImage: Status(400, _C.INVALID_ARGUMENT, "invalid-image"),
    errors.UnsupportedImageFormat: Status(415, _C.INVALID_ARGUMENT, "unsupported-image-format"),
    errors.ImageTooLarge: Status(413, _C.INVALID_ARGUMENT, "image-too-large"),
    errors.InvalidParameter: Status(400, _C.INVALID_ARGUMENT, "invalid-parameter"),
    NotAcceptable: Status(406, _C.INVALID_ARGUMENT, "not-acceptable"),
    errors.UnknownModel: Status(404, _C.NOT_FOUND, "unknown-model"),
    errors.UnknownVersion: Status(404, _C.NOT_FOUND, "unknown-version"),
    errors.NotAuthenticated: Status(401, _C.UNAUTHENTICATED, "not-authenticated"),
    errors.NotAllowed: Status(403, _C.PERMISSION_DENIED, "not-allowed"),
    errors.ModelNotReady: Status(503, _C.UNAVAILABLE, "model-not-ready", retry=True),
    errors.Overloaded: Status(429, _C.RESOURCE_EXHAUSTED, "overloaded", retry=True),
    errors.UploadTooSlow: Status(408, _C.DEADLINE_EXCEEDED, "upload-too-slow"),
    errors.DeadlineExceeded: Status(504, _C.DEADLINE_EXCEEDED, "deadline-exceeded"),
    errors.Cancelled: Status(CLIENT_CLOSED_REQUEST, _C.CANCELLED, "cancelled"),
    errors.ShuttingDown: Status(503, _C.UNAVAILABLE, "shutting-down", retry=True),
    errors.InferenceFailed: Status(500, _C.INTERNAL, "inference-failed"),
    errors.ModelLoadError: Status(500, _C.INTERNAL, "model-load-error"),
    errors.ServiceError: Status(500, _C.INTERNAL, "internal-error"),
}

TYPE_PREFIX: Final = "urn:fcn:problem:"
CHALLENGE: Final = 'Bearer realm="fcn-serve"'
"""Goes with every 401. Source: RFC 6750, section 3."""
RETRY_AFTER_S: Final = 1.0
"""Told with a retryable error that has no estimate of its own."""


def status_of(error: errors.ServiceError) -> Status:
    """The row of the error's class, or of its nearest base."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def retry_after_s(error: errors.ServiceError) -> int | None:
    """Whole seconds to wait before the next try, at least 1; None when a retry cannot help."""
    if not status_of(error).retry:
        return None
    return max(1, math.ceil(getattr(error, "retry_after_s", RETRY_AFTER_S)))


def headers_of(error: errors.ServiceError) -> dict[str, str] | None:
    """What goes with the error over HTTP, besides its body."""
    if isinstance(error, errors.NotAuthenticated):
        return {"WWW-Authenticate": CHALLENGE}
    wait_s = retry_after_s(error)
    return None if wait_s is None else {"Retry-After": str(wait_s)}


def counts_as_latency(http: int) -> bool:
    """Whether a request's time tells how fast the service is.

    The caller's mistakes and refusals are quick and would flatter it; timeouts and failures count.
    """
    return http < HTTPStatus.BAD_REQUEST or http >= HTTPStatus.INTERNAL_SERVER_ERROR
