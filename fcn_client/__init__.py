"""Python client of FCN Serve: REST and gRPC, sync and async, behind one interface.

    with FcnClient("http://localhost:8000") as client:
        label_map = client.segment("photo.jpg").value  # uint8 [H,W]

It imports nothing else of the project, and installs without it.
"""

from fcn_client.async_client import AsyncFcnClient
from fcn_client.client import FcnClient
from fcn_client.errors import (
    DeadlineExceeded,
    FcnError,
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    InvalidParameter,
    ModelNotReady,
    NotAllowed,
    NotAuthenticated,
    Overloaded,
    ServerError,
    ShuttingDown,
    TimedOut,
    UnknownModel,
    UnknownVersion,
    Unreachable,
    UnreadableAnswer,
    UnsupportedImageFormat,
    UnusableInput,
    UploadTooSlow,
)
from fcn_client.retry import RetryPolicy
from fcn_client.types import (
    ClassInfo,
    Model,
    ModelVersion,
    Outcome,
    SegmentOptions,
    SegmentResult,
    Timings,
)

__all__ = [
    "AsyncFcnClient",
    "ClassInfo",
    "DeadlineExceeded",
    "FcnClient",
    "FcnError",
    "ImageTooLarge",
    "InferenceFailed",
    "InvalidImage",
    "InvalidParameter",
    "Model",
    "ModelNotReady",
    "ModelVersion",
    "NotAllowed",
    "NotAuthenticated",
    "Outcome",
    "Overloaded",
    "RetryPolicy",
    "SegmentOptions",
    "SegmentResult",
    "ServerError",
    "ShuttingDown",
    "TimedOut",
    "Timings",
    "UnknownModel",
    "UnknownVersion",
    "Unreachable",
    "UnreadableAnswer",
    "UnsupportedImageFormat",
    "UnusableInput",
    "UploadTooSlow",
]
