"""Names everything that can go wrong with a request, as the caller sees it.

    FcnError
      InvalidInput          what was given is no image, or a parameter cannot be sent (ValueError)
      FcnConnectionError    no connection, or it broke (ConnectionError)
      FcnTimeoutError       the time allowed ran out here (TimeoutError)
      DecodeError           the answer is not what was asked for
      ServerError           the server answered with an error; its problem document's fields
        InvalidImage, UnsupportedImageFormat, ImageTooLarge, InvalidParameter, NotAcceptable,
        UnknownModel, UnknownVersion, NotAuthenticated, NotAllowed, ModelNotReady, Overloaded,
        LimitExceeded, UploadTooSlow, DeadlineExceeded (a TimeoutError, too), Cancelled,
        ShuttingDown, InferenceFailed, HookFailed, ModelLoadError, InternalError

`str(error)` is one sentence. `retryable` says whether the same request may succeed later.
"""

from __future__ import annotations

from typing import ClassVar, Final

TYPE_PREFIX: Final = "urn:fcn:problem:"
RETRYABLE_STATUS: Final = frozenset({429, 502, 503})  # 502: a proxy whose server restarts


class FcnError(Exception):
    """Catches them all. `attempts`: how often the server was asked before this was raised."""

    retryable = False
    elsewhere = False  # another one of several servers may be asked at once
    retry_after_s: float | None = None
    attempts = 1


class InvalidInput(FcnError, ValueError):
    pass


class FcnConnectionError(FcnError, ConnectionError):
    retryable = True  # a request changes nothing on the server, so it may be sent again


class FcnTimeoutError(FcnError, TimeoutError):
    pass


class DecodeError(FcnError):
    pass


# Names of version 0.1.
UnusableInput = InvalidInput
Unreachable = FcnConnectionError
TimedOut = FcnTimeoutError
UnreadableAnswer = DecodeError


class ServerError(FcnError):
    """Carries the server's own account of what is wrong, as a problem document has it (RFC 9457).

    A subclass has the kind, the title and the HTTP status of its errors. `code`: the name of gRPC's
    status, empty over REST.
    """

    kind: ClassVar[str] = ""
    title: str = "Server error"
    status: int = 500

    def __init__(
        self,
        detail: str = "",
        *,
        title: str | None = None,
        status: int | None = None,
        type: str | None = None,
        instance: str = "",
        request_id: str = "",
        code: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.title = self.title if title is None else title
        self.status = self.status if status is None else status
        self.type = (
            (TYPE_PREFIX + self.kind if self.kind else "about:blank") if type is None else type
        )
        self.instance = instance
        self.request_id = request_id
        self.code = code
        self.retry_after_s = retry_after_s
        self.retryable = self.status in RETRYABLE_STATUS

    def __str__(self) -> str:
        return f"{self.title}: {self.detail}" if self.detail else self.title


class InvalidImage(ServerError):
    kind, title, status = "invalid-image", "Invalid image", 400


class UnsupportedImageFormat(ServerError):
    kind, title, status = "unsupported-image-format", "Unsupported image format", 415


class ImageTooLarge(ServerError):
    kind, title, status = "image-too-large", "Image too large", 413


class InvalidParameter(ServerError):
    kind, title, status = "invalid-parameter", "Invalid parameter", 400


class NotAcceptable(InvalidParameter):
    kind, title, status = "not-acceptable", "Not acceptable", 406


class UnknownModel(ServerError):
    kind, title, status = "unknown-model", "Unknown model", 404


class UnknownVersion(ServerError):
    kind, title, status = "unknown-version", "Unknown model version", 404


class NotAuthenticated(ServerError):
    kind, title, status = "not-authenticated", "Not authenticated", 401


class NotAllowed(ServerError):
    kind, title, status = "not-allowed", "Not allowed", 403


class ModelNotReady(ServerError):
    kind, title, status = "model-not-ready", "Model not ready", 503


class Overloaded(ServerError):
    kind, title, status = "overloaded", "Overloaded", 429


class LimitExceeded(ServerError):
    kind, title, status = "limit-exceeded", "Limit exceeded", 429


class UploadTooSlow(ServerError):
    kind, title, status = "upload-too-slow", "Upload too slow", 408


class DeadlineExceeded(ServerError, FcnTimeoutError):
    kind, title, status = "deadline-exceeded", "Deadline exceeded", 504


class Cancelled(ServerError):
    kind, title, status = "cancelled", "Cancelled", 499


class ShuttingDown(ServerError):
    kind, title, status = "shutting-down", "Shutting down", 503


class InferenceFailed(ServerError):
    kind, title, status = "inference-failed", "Inference failed", 500


class HookFailed(ServerError):
    kind, title, status = "hook-failed", "Hook failed", 500


class ModelLoadError(ServerError):
    kind, title, status = "model-load-error", "Model cannot be loaded", 500


class InternalError(ServerError):
    kind, title, status = "internal-error", "Internal error", 500


def _kinds(base: type[ServerError]) -> dict[str, type[ServerError]]:
    found = {base.kind: base} if base.kind else {}
    for error in base.__subclasses__():
        found |= _kinds(error)
    return found


KINDS: Final = _kinds(ServerError)
"""The class of each kind, which is the last part of a problem's `type`."""
