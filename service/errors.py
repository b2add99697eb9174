"""Everything that can go wrong with a request or at the start, in the domain's words.

    ServiceError
      InvalidImage            the bytes are not a whole picture
      UnsupportedImageFormat  a picture, but not of a kind this service reads
      ImageTooLarge           too many bytes or pixels
      InvalidParameter        a query parameter is out of its range
      UnknownModel, UnknownVersion
      NotAuthenticated        the operator's key is missing or wrong
      NotAllowed              nobody may do this here, as the server is set up
      ModelNotReady           known, but loading or failed
      Overloaded              no room now; carries retry_after_s
      UploadTooSlow           the body was not complete in time
      DeadlineExceeded        the caller's time ran out
      Cancelled               the caller left
      ShuttingDown            draining: ask another replica
      InferenceFailed         the network failed; the cause is in the log only
      ModelLoadError          at the start: a model file or folder cannot be served

`str(error)` is one sentence for the caller: what is wrong and what to do about it. HTTP and gRPC
codes are not here: `service/api/status.py` has the one table.
"""

from __future__ import annotations

from typing import ClassVar

_MAX_QUOTED = 80


def quoted(text: str) -> str:
    """What a caller sent, safe to repeat in a sentence: escaped, and cut at 80 characters."""
    return repr(text if len(text) <= _MAX_QUOTED else text[:_MAX_QUOTED] + "...")


class ServiceError(Exception):
    """The root: catch this to answer a caller."""

    title: ClassVar[str] = "Service error"


class InvalidImage(ServiceError):
    title = "Invalid image"


class UnsupportedImageFormat(ServiceError):
    title = "Unsupported image format"


class ImageTooLarge(ServiceError):
    title = "Image too large"


class InvalidParameter(ServiceError):
    title = "Invalid parameter"


class UnknownModel(ServiceError):
    title = "Unknown model"


class UnknownVersion(ServiceError):
    title = "Unknown model version"


class NotAuthenticated(ServiceError):
    title = "Not authenticated"


class NotAllowed(ServiceError):
    title = "Not allowed"


class ModelNotReady(ServiceError):
    title = "Model not ready"


class Overloaded(ServiceError):
    """`retry_after_s` > 0 estimates when there will be room again."""

    title = "Overloaded"

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(
            f"the service has as many requests as it can hold: retry in {retry_after_s:.0f} s"
        )
        self.retry_after_s = retry_after_s


class UploadTooSlow(ServiceError):
    title = "Upload too slow"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"the upload was not complete after {timeout_s:g} s: send a smaller picture, or use a "
            "faster connection"
        )


class DeadlineExceeded(ServiceError):
    title = "Deadline exceeded"


class Cancelled(ServiceError):
    title = "Cancelled"

    def __init__(self, message: str = "the request was cancelled by its caller") -> None:
        super().__init__(message)


class ShuttingDown(ServiceError):
    title = "Shutting down"

    def __init__(
        self, message: str = "this server is shutting down: send the request again to another"
    ) -> None:
        super().__init__(message)


class InferenceFailed(ServiceError):
    """Says nothing of the cause: error texts of runtimes have leaked secrets before."""

    title = "Inference failed"

    def __init__(
        self,
        message: str = (
            "the model failed on this image: try again, and report the request id if it recurs"
        ),
    ) -> None:
        super().__init__(message)


class ModelLoadError(ServiceError):
    title = "Model cannot be loaded"
