"""Everything that can go wrong with a request or at the start, in the domain's words.

    ServiceError
      InvalidImage            the bytes are not a whole image
      UnsupportedImageFormat  an image, but not of a format this service reads
      ImageTooLarge           too many bytes or pixels
      InvalidParameter        a parameter is out of its range
        NotAcceptable         `Accept` allows no kind of reply there is
      UnknownModel, UnknownVersion
      NotAuthenticated        the operator's key is missing or wrong
      NotAllowed              nobody may do this here, as the server is set up
      ModelNotReady           known, but loading or failed
      Overloaded              no room now; carries retry_after_s
      LimitExceeded           more than this caller may ask for; carries retry_after_s
      UploadTooSlow           the body was not complete in time
      DeadlineExceeded        the caller's time ran out
      Cancelled               the caller left
      ShuttingDown            draining: ask another replica
      InferenceFailed         the network failed; the cause is in the log only
      HookFailed              the operator's own code failed; the cause is in the log only
      ModelLoadError          at the start: a model file or folder cannot be served
    StartError                the server cannot start; nobody has asked for anything yet

`str(error)` is one sentence for the caller: what is wrong and what to do about it. HTTP and gRPC
codes are not here: `service/api/status.py` has the one table.
"""

from __future__ import annotations

import asyncio
import math
from typing import ClassVar

_MAX_QUOTED = 80


def quoted(text: str) -> str:
    """Makes what a caller sent safe to repeat in a sentence: escaped, cut at 80 characters."""
    return repr(text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "...")


class ServiceError(Exception):
    """Is the root of all: catch this to answer a caller."""

    kind: ClassVar[str] = "internal-error"
    """Ends the problem's `type` over HTTP, and is the reason in gRPC's ErrorInfo: never changes."""
    title: ClassVar[str] = "Internal error"


class InvalidImage(ServiceError):
    kind = "invalid-image"
    title = "Invalid image"


class UnsupportedImageFormat(ServiceError):
    kind = "unsupported-image-format"
    title = "Unsupported image format"


class ImageTooLarge(ServiceError):
    kind = "image-too-large"
    title = "Image too large"


class InvalidParameter(ServiceError):
    kind = "invalid-parameter"
    title = "Invalid parameter"


class NotAcceptable(InvalidParameter):
    kind = "not-acceptable"
    title = "Not acceptable"


class UnknownModel(ServiceError):
    kind = "unknown-model"
    title = "Unknown model"


class UnknownVersion(ServiceError):
    kind = "unknown-version"
    title = "Unknown model version"


class NotAuthenticated(ServiceError):
    kind = "not-authenticated"
    title = "Not authenticated"


class NotAllowed(ServiceError):
    kind = "not-allowed"
    title = "Not allowed"


class ModelNotReady(ServiceError):
    kind = "model-not-ready"
    title = "Model not ready"


class Overloaded(ServiceError):
    """Says that there is no room; `retry_after_s` > 0 estimates when there will be some again."""

    kind = "overloaded"
    title = "Overloaded"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            f"the service has as many requests as it can hold: retry in {retry_after_s:.0f} s"
        )
        self.retry_after_s = retry_after_s


class MessageTooLarge(ServiceError):
    """Is of gRPC, whose methods have limits of their own."""

    kind = "message-too-large"
    title = "Message too large"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"the message is larger than {max_bytes} bytes, as it is or unpacked: send a smaller "
            "or more compressed image, and nothing else that is large"
        )


class UnknownMethod(ServiceError):
    kind = "unknown-method"
    title = "Unknown method"


class LimitExceeded(ServiceError):
    """`limit` names which one, for the metrics; `retry_after_s` > 0 says when more is allowed."""

    kind = "limit-exceeded"
    title = "Limit exceeded"

    def __init__(self, message: str, retry_after_s: float, limit: str) -> None:
        super().__init__(f"{message}: retry in {math.ceil(retry_after_s)} s")
        self.retry_after_s = retry_after_s
        self.limit = limit


class UploadTooSlow(ServiceError):
    kind = "upload-too-slow"
    title = "Upload too slow"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"the upload was not complete after {timeout_s:g} s: send a smaller image, or use a "
            "faster connection"
        )


class DeadlineExceeded(ServiceError):
    kind = "deadline-exceeded"
    title = "Deadline exceeded"

    def __init__(
        self,
        message: str = (
            "the deadline passed before the answer was ready: allow more time or send less"
        ),
    ) -> None:
        super().__init__(message)


class Cancelled(ServiceError):
    kind = "cancelled"
    title = "Cancelled"

    def __init__(self, message: str = "the request was cancelled by its caller") -> None:
        super().__init__(message)


class ShuttingDown(ServiceError):
    kind = "shutting-down"
    title = "Shutting down"

    def __init__(
        self, message: str = "this server is shutting down: send the request again to another"
    ) -> None:
        super().__init__(message)


class InferenceFailed(ServiceError):
    """Says nothing of the cause: error texts of runtimes have leaked secrets before."""

    kind = "inference-failed"
    title = "Inference failed"

    def __init__(
        self,
        message: str = (
            "the model failed on this image: try again, and report the request id if it recurs"
        ),
    ) -> None:
        super().__init__(message)


class HookFailed(ServiceError):
    """Says nothing of the cause, which is in the log: it may have the image's content in it."""

    kind = "hook-failed"
    title = "Hook failed"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the hook {name!r} of this server failed on this image: report the request id to who "
            "runs it"
        )


class ModelLoadError(ServiceError):
    kind = "model-load-error"
    title = "Model cannot be loaded"


class StartError(Exception):
    """Says in one line why the server cannot start, and what to do."""


def let_go(error: BaseException | None) -> None:
    """Forgets the frames that an error came through, once it is answered.

    A future, a task or gRPC's own error keeps it in a circle with them, and so the upload that they
    were about, until the garbage collector comes by: 20 uploads of 30 MB waited for it.
    """
    while isinstance(error, Exception | asyncio.CancelledError):
        error.__traceback__, context = None, error.__context__
        error.__context__, error = None, context
