"""Turns the client's own types into messages of gRPC `segmentation.v1`, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError as NoMessage
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fcn_client.errors import DecodeError, FcnConnectionError, FcnError, InvalidInput
from fcn_client.problems import from_item, from_status
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.types import Call, ClassInfo, Model, ModelVersion, RawReply, Timings

Metadata: TypeAlias = tuple[tuple[str, str], ...]
Answered: TypeAlias = Callable[[str, RawReply | FcnError], None]
"""Is told an image's id, and what became of it."""
Ended: TypeAlias = Callable[[FcnError], None]
"""Is told once why there will be no more answers; not after the stream was closed."""

REQUEST_ID: Final = "x-request-id"
PUSHBACK: Final = "grpc-retry-pushback-ms"
"""Names the milliseconds to wait before a retry; a negative or no number says not to.

Source: gRPC proposal A6, client retries.
"""
_MAX_DEADLINE_MS: Final = 3_600_000  # more is refused; the wait here ends in time in any case
_OUR_DOMAIN: Final = "fcn-serve"
"""ErrorInfo says with it that the reason is one of ours. Source: google/rpc/error_details.proto."""
# What grpc.aio says where a write failed before it had the server's own status, which is then lost.
# A new call will tell: a key that is not taken comes to light at the second or third.
_LOST_STATUS: Final = "Internal error from Core"
_CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def request_of(call: Call) -> pb.SegmentRequest:
    """Makes the request. Raises: InvalidInput for an output or a priority that the stubs do not
    define."""
    return pb.SegmentRequest(
        image=call.image,
        model=call.model or "",
        version=call.version or "",
        output=_number(pb.Output, "OUTPUT", call.output),
        alpha=call.alpha,
        classes=call.classes,
        outlines=bool(call.outlines),
        dtype=_number(pb.Dtype, "DTYPE", call.dtype or "unspecified"),
        priority=_number(pb.Priority, "PRIORITY", call.priority or "unspecified"),
        scale="" if call.scale is None else str(call.scale),
    )


def _number(kind: Any, prefix: str, name: str) -> Any:
    """Finds a member of one of the proto's enums by the name that REST has for it."""
    try:
        return kind.Value(f"{prefix}_{name.upper()}")
    except ValueError:
        known = [key.removeprefix(f"{prefix}_").lower() for key in kind.keys()]  # noqa: SIM118  # no dict
        raise InvalidInput(
            f"there is no {prefix.lower()} {name!r}: use one of {', '.join(known[1:])}"
        ) from None


def item_of(id: str, call: Call) -> pb.SegmentStreamRequest:
    """Makes the same request for a stream. `call.timeout_s` is from now."""
    wait_ms = max(1, min(_MAX_DEADLINE_MS, int(1000 * call.timeout_s)))
    return pb.SegmentStreamRequest(id=id, request=request_of(call), deadline_ms=wait_ms)


def opening_of(window: int) -> pb.SegmentStreamRequest:
    """Makes a stream's first message. Never `ordered`: an image that must be sent again would lose
    its place anyway."""
    return pb.SegmentStreamRequest(options=pb.StreamOptions(window=window))


def outcome_of(answer: pb.SegmentStreamResponse, request_id: str) -> RawReply | FcnError:
    """Reads one answer of a stream, whose `request_id` this is. The server's log has
    `<the stream's>/<the image's>`."""
    request_id = f"{request_id}/{answer.id}"
    if answer.HasField("response"):
        return reply_of(answer.response, None, request_id)
    error = answer.error
    return from_item(
        _CODES.get(error.code, "UNKNOWN"),
        error.message,
        error.type,
        retry_after_s=error.retry_after_ms / 1000 if error.HasField("retry_after_ms") else None,
        request_id=request_id,
    )


def reply_of(response: pb.SegmentResponse, trailing: Any, request_id: str) -> RawReply:
    t = response.timings
    return RawReply(
        body=response.body,
        media_type=response.media_type,
        model=response.model,
        version=response.version,
        request_id=_values(trailing).get(REQUEST_ID, request_id),
        timings=Timings(t.decode_s, t.queue_s, t.infer_s, t.render_s),
        network_size=(response.network_height_px, response.network_width_px)
        if response.network_height_px
        else None,
    )


def failure(error: Any, request_id: str) -> FcnError:
    """Reads why a call failed. error: grpc's."""
    trailing = _values(error.trailing_metadata())
    kind, wait_s = _details(error)
    pushback = trailing.get(PUSHBACK)
    if pushback is not None and pushback.isdigit():
        wait_s = int(pushback) / 1000
    return from_status(
        error.code().name,
        error.details() or "",
        kind=kind,
        retry_after_s=wait_s,
        no_retry=pushback is not None and not pushback.isdigit(),
        request_id=trailing.get(REQUEST_ID, request_id),
    )


def _details(error: Any) -> tuple[str, float | None]:
    """Reads the kind and the seconds to wait from the status details, where our server sent any."""
    kind, wait_s = "", None
    try:
        status = rpc_status.from_call(error)
    except (NoMessage, ValueError):  # another server's, or a proxy's
        return kind, wait_s
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info) and info.domain == _OUR_DOMAIN:
            kind = info.reason
        elif detail.Unpack(retry):
            wait_s = retry.retry_delay.ToMilliseconds() / 1000
    return kind, wait_s


def stream_failure(error: Any, request_id: str) -> FcnError:
    """Reads why a stream ended early. error: grpc's."""
    if error.code() is grpc.StatusCode.INTERNAL and error.details() == _LOST_STATUS:
        return FcnConnectionError("the call broke off while it was written to")
    return failure(error, request_id)


def metadata_of(headers: Mapping[str, str]) -> Metadata:
    return tuple((name.lower(), value) for name, value in headers.items())  # gRPC wants lower case


def target_of(url: str) -> tuple[str, bool]:
    """Splits `grpc://host:port` or, with TLS, `grpcs://host:port`: gRPC's target, and whether TLS.

    Raises: InvalidInput.
    """
    parts = urlsplit(url)
    if not parts.netloc or parts.path.strip("/") or parts.query:
        raise InvalidInput(f"{url} is no address of a gRPC server: use grpc://host:port")
    return parts.netloc, parts.scheme == "grpcs"


def _values(metadata: Iterable[tuple[str, Any]] | None) -> dict[str, str]:
    return {key: value for key, value in metadata or () if isinstance(value, str)}


def models_of(listing: pb.ListModelsResponse) -> tuple[Model, ...]:
    """Reads the list of models. Raises: DecodeError."""
    models = []
    # Ordered by name, then by version with the oldest first.
    for name, group in groupby(listing.models, key=lambda entry: entry.name):
        entries = list(group)
        answering = [e for e in entries if e.state == "ready"] or entries
        chosen = next((e for e in entries if e.is_default), answering[-1])
        models.append(
            Model(
                name=name,
                is_default=any(e.is_default for e in entries),
                default_version=chosen.version,
                versions=tuple(_version(e) for e in entries),
                description=chosen.description,
            )
        )
    return tuple(models)


def _version(entry: pb.Model) -> ModelVersion:
    try:
        contract = json.loads(entry.contract_json) if entry.contract_json else {}
        classes = tuple(
            ClassInfo(c.id, c.name, (c.color_rgb[0], c.color_rgb[1], c.color_rgb[2]), c.description)
            for c in entry.classes
        )
    except (IndexError, ValueError) as error:
        raise DecodeError(f"the list of models cannot be read: {error!r}") from error
    return ModelVersion(
        entry.version,
        entry.state,
        entry.precision,
        entry.provider,
        classes,
        contract,
        entry.engine,
    )
