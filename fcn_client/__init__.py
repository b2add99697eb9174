"""Asks FCN Serve over REST and gRPC, sync and async, by one interface.

    with FcnClient("http://localhost:8000") as client:
        label_map = client.segment("photo.jpg").value  # uint8 [H,W]

It imports nothing else of the project, and installs without it.
"""

from fcn_client.aio.client import AsyncFcnClient
from fcn_client.errors import (
    DeadlineExceeded,
    DecodeError,
    FcnConnectionError,
    FcnError,
    FcnTimeoutError,
    HookFailed,
    ImageTooLarge,
    InferenceFailed,
    InvalidImage,
    InvalidInput,
    InvalidParameter,
    LimitExceeded,
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
from fcn_client.sync.client import FcnClient
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
    "DecodeError",
    "FcnClient",
    "FcnConnectionError",
    "FcnError",
    "FcnTimeoutError",
    "HookFailed",
    "ImageTooLarge",
    "InferenceFailed",
    "InvalidImage",
    "InvalidInput",
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
    "LimitExceeded",
    "UploadTooSlow",
]
