"""Holds the one table: what each domain error is on the wire, over HTTP and over gRPC."""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import grpc

from service import errors


@dataclass(frozen=True, slots=True)
class Status:
    """Says how one kind of error is told.

    kind: last part of the problem's `type`. http: status code. code: gRPC's. retry: whether the
    same request may succeed later, here or at another replica.
    """

    kind: str
    http: int
    code: grpc.StatusCode
    retry: bool = False

    @property
    def is_ours(self) -> bool:
        """Says whether the service failed, or had no room: not for a limit of the caller's."""
        failed = self.http == HTTPStatus.INTERNAL_SERVER_ERROR
        return failed or (self.retry and self.kind != errors.LimitExceeded.kind)

    @property
    def counts_as_latency(self) -> bool:
        """Says whether the time of a request that ends so tells how fast the service is: timeouts
        and failures do, the caller's mistakes and refusals do not."""
        return self.http >= HTTPStatus.INTERNAL_SERVER_ERROR


CLIENT_CLOSED_REQUEST: Final = 499
"""Not sent, only counted: nobody is left to read it. Source: nginx, ngx_http_request.h."""

_C = grpc.StatusCode
_ROWS: Final[dict[type[errors.ServiceError], tuple[int, grpc.StatusCode, bool]]] = {
    errors.InvalidImage: (400, _C.INVALID_ARGUMENT, False),
    errors.UnsupportedImageFormat: (415, _C.INVALID_ARGUMENT, False),
    errors.ImageTooLarge: (413, _C.INVALID_ARGUMENT, False),
    errors.InvalidParameter: (400, _C.INVALID_ARGUMENT, False),
    errors.NotAcceptable: (406, _C.INVALID_ARGUMENT, False),
    errors.UnknownModel: (404, _C.NOT_FOUND, False),
    errors.UnknownVersion: (404, _C.NOT_FOUND, False),
    errors.NotAuthenticated: (401, _C.UNAUTHENTICATED, False),
    errors.NotAllowed: (403, _C.PERMISSION_DENIED, False),
    errors.ModelNotReady: (503, _C.UNAVAILABLE, True),
    errors.Overloaded: (429, _C.RESOURCE_EXHAUSTED, True),
    errors.MessageTooLarge: (413, _C.RESOURCE_EXHAUSTED, False),
    errors.UnknownMethod: (404, _C.UNIMPLEMENTED, False),
    errors.LimitExceeded: (429, _C.RESOURCE_EXHAUSTED, True),
    errors.UploadTooSlow: (408, _C.DEADLINE_EXCEEDED, False),
    errors.DeadlineExceeded: (504, _C.DEADLINE_EXCEEDED, False),
    errors.Cancelled: (CLIENT_CLOSED_REQUEST, _C.CANCELLED, False),
    errors.ShuttingDown: (503, _C.UNAVAILABLE, True),
    errors.InferenceFailed: (500, _C.INTERNAL, False),
    errors.HookFailed: (500, _C.INTERNAL, False),
    errors.ModelLoadError: (500, _C.INTERNAL, False),
    errors.ServiceError: (500, _C.INTERNAL, False),
}
TABLE: Final = {error: Status(error.kind, *row) for error, row in _ROWS.items()}

TYPE_PREFIX: Final = "urn:fcn:problem:"
RETRY_AFTER_S: Final = 1.0
"""Told with a retryable error that has no estimate of its own."""


def status_of(error: errors.ServiceError) -> Status:
    """Finds the row of the error's class, or of its nearest base."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def retry_after_s(error: errors.ServiceError) -> int | None:
    """Counts whole seconds before the next try, at least 1; None when a retry cannot help."""
    if not status_of(error).retry:
        return None
    return max(1, math.ceil(getattr(error, "retry_after_s", RETRY_AFTER_S)))
