"""Everything that can go wrong with a request, seen from the caller's side.

    FcnError
      UnusableInput         what was given is no picture, or a parameter cannot be sent
      Unreachable           no connection, or it broke
      TimedOut              the time allowed ran out here
      UnreadableAnswer      the answer is not what was asked for
      ServerError           the server answered with an error; its problem document's fields
        InvalidImage, UnsupportedImageFormat, ImageTooLarge, InvalidParameter, NotAcceptable,
        UnknownModel, UnknownVersion, NotAuthenticated, NotAllowed, ModelNotReady, Overloaded,
        UploadTooSlow, DeadlineExceeded (a TimedOut, too), Cancelled, ShuttingDown,
        InferenceFailed, ModelLoadError, InternalError

`str(error)` is one sentence. `retryable` says whether the same request may succeed later.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

TYPE_PREFIX: Final = "urn:fcn:problem:"
RETRYABLE_STATUS: Final = frozenset({429, 503})


class FcnError(Exception):
    """The root. `attempts`: how often the server was asked before this was raised."""

    retryable = False
    retry_after_s: float | None = None
    attempts = 1


class UnusableInput(FcnError, ValueError):
    pass


class Unreachable(FcnError):
    retryable = True  # a request changes nothing on the server, so it may be sent again


class TimedOut(FcnError):
    pass


class UnreadableAnswer(FcnError):
    pass


@dataclass(frozen=True, slots=True)
class Problem:
    """The fields of a problem document (RFC 9457). `status`: HTTP's. `code`: gRPC's name, or ""."""

    type: str
    title: str
    status: int
    detail: str
    instance: str = ""
    request_id: str = ""
    code: str = ""


class ServerError(FcnError):
    """The server's own account of what is wrong: the fields of `Problem`."""

    def __init__(self, problem: Problem, retry_after_s: float | None = None) -> None:
        super().__init__(f"{problem.title}: {problem.detail}" if problem.detail else problem.title)
        self.problem = problem
        self.retry_after_s = retry_after_s
        self.retryable = problem.status in RETRYABLE_STATUS

    @property
    def type(self) -> str:
        return self.problem.type

    @property
    def title(self) -> str:
        return self.problem.title

    @property
    def status(self) -> int:
        return self.problem.status

    @property
    def detail(self) -> str:
        return self.problem.detail

    @property
    def instance(self) -> str:
        return self.problem.instance

    @property
    def request_id(self) -> str:
        return self.problem.request_id

    @property
    def code(self) -> str:
        return self.problem.code


class InvalidImage(ServerError):
    pass


class UnsupportedImageFormat(ServerError):
    pass


class ImageTooLarge(ServerError):
    pass


class InvalidParameter(ServerError):
    pass


class NotAcceptable(InvalidParameter):
    pass


class UnknownModel(ServerError):
    pass


class UnknownVersion(ServerError):
    pass


class NotAuthenticated(ServerError):
    pass


class NotAllowed(ServerError):
    pass


class ModelNotReady(ServerError):
    pass


class Overloaded(ServerError):
    pass


class UploadTooSlow(ServerError):
    pass


class DeadlineExceeded(ServerError, TimedOut):
    pass


class Cancelled(ServerError):
    pass


class ShuttingDown(ServerError):
    pass


class InferenceFailed(ServerError):
    pass


class ModelLoadError(ServerError):
    pass


class InternalError(ServerError):
    pass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem: its class here, its title and its HTTP status."""

    error: type[ServerError]
    title: str
    status: int


KINDS: Final = {
    "invalid-image": Kind(InvalidImage, "Invalid image", 400),
    "unsupported-image-format": Kind(UnsupportedImageFormat, "Unsupported image format", 415),
    "image-too-large": Kind(ImageTooLarge, "Image too large", 413),
    "invalid-parameter": Kind(InvalidParameter, "Invalid parameter", 400),
    "not-acceptable": Kind(NotAcceptable, "Not acceptable", 406),
    "unknown-model": Kind(UnknownModel, "Unknown model", 404),
    "unknown-version": Kind(UnknownVersion, "Unknown model version", 404),
    "not-authenticated": Kind(NotAuthenticated, "Not authenticated", 401),
    "not-allowed": Kind(NotAllowed, "Not allowed", 403),
    "model-not-ready": Kind(ModelNotReady, "Model not ready", 503),
    "overloaded": Kind(Overloaded, "Overloaded", 429),
    "upload-too-slow": Kind(UploadTooSlow, "Upload too slow", 408),
    "deadline-exceeded": Kind(DeadlineExceeded, "Deadline exceeded", 504),
    "cancelled": Kind(Cancelled, "Cancelled", 499),
    "shutting-down": Kind(ShuttingDown, "Shutting down", 503),
    "inference-failed": Kind(InferenceFailed, "Inference failed", 500),
    "model-load-error": Kind(ModelLoadError, "Model cannot be loaded", 500),
    "internal-error": Kind(InternalError, "Internal error", 500),
}
"""The last part of a problem's `type`; a kind that is not here is a plain ServerError."""

# A proxy's refusal has no kind; these two are told from their status alone.
_ERROR_OF_STATUS: Final = {401: NotAuthenticated, 403: NotAllowed}
_KIND_OF_TITLE: Final = {kind.title: name for name, kind in KINDS.items()}
# What gRPC's codes are over HTTP, for errors that did not come from our server's code.
_STATUS_OF_CODE: Final = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def from_document(
    status: int, body: bytes, *, retry_after_s: float | None, request_id: str, reason: str = ""
) -> ServerError:
    """An HTTP error's exception; what a proxy answers is no problem document, and is taken too."""
    try:
        document = json.loads(body)
        problem = Problem(
            type=str(document["type"]),
            title=str(document["title"]),
            status=status,
            detail=str(document["detail"]),
            instance=str(document.get("instance", "")),
            request_id=str(document.get("request_id", request_id)),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        title = f"HTTP {status} {reason}".rstrip()
        problem = Problem("about:blank", title, status, "", request_id=request_id)
    return _error(problem, retry_after_s)


def from_status(
    code: str, details: str, *, retry_after_s: float | None, no_retry: bool, request_id: str
) -> FcnError:
    """A gRPC error's exception. `code`: its name. `no_retry`: the server asked not to retry."""
    title, colon, detail = details.partition(": ")
    kind = _KIND_OF_TITLE.get(title) if colon else None
    if kind is None and code == "DEADLINE_EXCEEDED":
        return TimedOut("the time allowed ran out before the answer came: allow more")
    if kind is None and code == "UNAVAILABLE":
        return Unreachable(f"cannot reach the server: {details}")
    if kind is None and code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        # gRPC itself, before the server's code: the message will not shrink by waiting.
        kind, detail = "image-too-large", f"{details}: compress it more or scale it down"
    if kind is not None:
        status, title = KINDS[kind].status, KINDS[kind].title
    else:
        status, detail = _STATUS_OF_CODE.get(code, 500), detail if colon else ""
        kind = title.lower().replace(" ", "-")
    instance = f"urn:fcn:request:{request_id}" if request_id else ""
    error = _error(
        Problem(TYPE_PREFIX + kind, title, status, detail, instance, request_id, code),
        retry_after_s,
    )
    if no_retry:
        error.retryable = False
    return error


def from_item(
    code: str, message: str, kind: str, *, retry_after_s: float | None, request_id: str
) -> ServerError:
    """The exception of a picture of a stream. `kind`: the problem's type. Without `retry_after_s`
    nothing is to be gained by sending it again."""
    title, colon, detail = message.partition(": ")
    known = KINDS.get(kind.removeprefix(TYPE_PREFIX))
    status = known.status if known else _STATUS_OF_CODE.get(code, 500)
    instance = f"urn:fcn:request:{request_id}"
    problem = Problem(kind, title, status, detail if colon else "", instance, request_id, code)
    error = _error(problem, retry_after_s)
    error.retryable = error.retryable and retry_after_s is not None
    return error


def _error(problem: Problem, retry_after_s: float | None) -> ServerError:
    kind = KINDS.get(problem.type.removeprefix(TYPE_PREFIX))
    error = kind.error if kind else _ERROR_OF_STATUS.get(problem.status, ServerError)
    return error(problem, retry_after_s)
