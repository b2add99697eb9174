"""The messages of gRPC `segmentation.v1`, to and from the client's own types."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final

import grpc

from fcn_client.errors import FcnError, UnreadableAnswer, UnusableInput, from_item, from_status
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.types import Call, ClassInfo, Model, ModelVersion, RawReply, Timings

REQUEST_ID: Final = "x-request-id"
PUSHBACK: Final = "grpc-retry-pushback-ms"
"""Milliseconds to wait before a retry; negative or no number: do not.

Source: gRPC proposal A6, client retries.
"""
_MAX_DEADLINE_MS: Final = 3_600_000  # more is refused; the wait here ends in time in any case
_CODES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def request_of(call: Call) -> pb.SegmentRequest:
    """Raises: UnusableInput for an output or a priority that the stubs have not."""
    return pb.SegmentRequest(
        image=call.picture,
        model=call.model or "",
        version=call.version or "",
        output=_number(pb.Output, "OUTPUT", call.output),
        alpha=call.alpha,
        classes=call.classes,
        outlines=bool(call.outlines),
        dtype=_number(pb.Dtype, "DTYPE", call.dtype or "unspecified"),
        priority=_number(pb.Priority, "PRIORITY", call.priority or "unspecified"),
    )


def _number(kind: Any, prefix: str, name: str) -> Any:
    """A member of one of the proto's enums, by the name REST has for it."""
    try:
        return kind.Value(f"{prefix}_{name.upper()}")
    except ValueError:
        known = [key.removeprefix(f"{prefix}_").lower() for key in kind.keys()]  # noqa: SIM118  # no dict
        raise UnusableInput(
            f"there is no {prefix.lower()} {name!r}: use one of {', '.join(known[1:])}"
        ) from None


def item_of(id: str, call: Call) -> pb.SegmentStreamRequest:
    """As `request_of`, for a stream. `call.timeout_s` is from now."""
    wait_ms = max(1, min(_MAX_DEADLINE_MS, int(1000 * call.timeout_s)))
    return pb.SegmentStreamRequest(id=id, request=request_of(call), deadline_ms=wait_ms)


def outcome_of(answer: pb.SegmentStreamResponse, request_id: str) -> RawReply | FcnError:
    """request_id: the stream's. The server's log has `<the stream's>/<the picture's>`."""
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
    )


def failure(error: Any, request_id: str) -> FcnError:
    trailing = _values(error.trailing_metadata())
    pushback = trailing.get(PUSHBACK)
    wait_s = int(pushback) / 1000 if pushback is not None and pushback.isdigit() else None
    return from_status(
        error.code().name,
        error.details() or "",
        retry_after_s=wait_s,
        no_retry=pushback is not None and wait_s is None,
        request_id=trailing.get(REQUEST_ID, request_id),
    )


def _values(metadata: Iterable[tuple[str, Any]] | None) -> dict[str, str]:
    return {key: value for key, value in metadata or () if isinstance(value, str)}


def models_of(listing: pb.ListModelsResponse) -> tuple[Model, ...]:
    """Raises: UnreadableAnswer."""
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
        raise UnreadableAnswer(f"the list of models cannot be read: {error!r}") from error
    return ModelVersion(
        entry.version, entry.state, entry.precision, entry.provider, classes, contract
    )
