"""gRPC `segmentation.v1`: one channel a client, which keeps its connection."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final
from urllib.parse import urlsplit

import grpc
from grpc import aio

from fcn_client.errors import FcnError, UnreadableAnswer, UnusableInput, from_status
from fcn_client.types import Call, ClassInfo, Model, ModelVersion, RawReply, Timings
from proto.segmentation.v1 import segmentation_pb2 as pb
from proto.segmentation.v1 import segmentation_pb2_grpc as pb_grpc

REQUEST_ID: Final = "x-request-id"
PUSHBACK: Final = "grpc-retry-pushback-ms"
"""Milliseconds to wait before a retry; negative or no number: do not.

Source: gRPC proposal A6, client retries.
"""

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),  # answers to large pictures exceed the usual 4 MB
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # ours count against the caller's deadline and policy
    # By default a server that was away is left alone for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
)
# The health protocol without its package: the request of all services is empty, and the answer's
# only field, number 1, is 1 for SERVING. Source: grpc/health/v1/health.proto.
_HEALTH: Final = "/grpc.health.v1.Health/Check"
_SERVING: Final = b"\x08\x01"

Metadata = Sequence[tuple[str, str]]


class GrpcTransport:
    """For one thread or many."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        target, secure = target_of(url)
        self._channel = (
            grpc.secure_channel(target, grpc.ssl_channel_credentials(), options=_OPTIONS)
            if secure
            else grpc.insecure_channel(target, options=_OPTIONS)
        )
        self._headers = _metadata(headers)
        self._stub = pb_grpc.SegmentationStub(self._channel)
        self._health = self._channel.unary_unary(_HEALTH, _as_it_is, _as_it_is)

    def segment(self, call: Call) -> RawReply:
        request, metadata = _request(call), (*self._headers, (REQUEST_ID, call.request_id))
        try:
            response, done = self._stub.Segment.with_call(
                request, timeout=call.timeout_s, metadata=metadata
            )
        except grpc.RpcError as error:
            raise _failure(error, call.request_id) from error
        return _reply(response, done.trailing_metadata(), call.request_id)

    def models(self, timeout_s: float) -> tuple[Model, ...]:
        try:
            listing = self._stub.ListModels(
                pb.ListModelsRequest(), timeout=timeout_s, metadata=self._headers
            )
        except grpc.RpcError as error:
            raise _failure(error, "") from error
        return _models(listing)

    def ready(self, timeout_s: float) -> bool:
        try:
            return bool(self._health(b"", timeout=timeout_s, metadata=self._headers) == _SERVING)
        except grpc.RpcError:
            return False

    def close(self) -> None:
        self._channel.close()


class AsyncGrpcTransport:
    """For the tasks of one event loop."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        target, secure = target_of(url)
        self._channel = (
            aio.secure_channel(target, grpc.ssl_channel_credentials(), options=_OPTIONS)
            if secure
            else aio.insecure_channel(target, options=_OPTIONS)
        )
        self._headers = _metadata(headers)
        self._stub = pb_grpc.SegmentationStub(self._channel)
        self._health = self._channel.unary_unary(_HEALTH, _as_it_is, _as_it_is)

    async def segment(self, call: Call) -> RawReply:
        request, metadata = _request(call), (*self._headers, (REQUEST_ID, call.request_id))
        asked = self._stub.Segment(request, timeout=call.timeout_s, metadata=metadata)
        try:
            response = await asked
        except grpc.RpcError as error:
            raise _failure(error, call.request_id) from error
        return _reply(response, await asked.trailing_metadata(), call.request_id)

    async def models(self, timeout_s: float) -> tuple[Model, ...]:
        try:
            listing = await self._stub.ListModels(
                pb.ListModelsRequest(), timeout=timeout_s, metadata=self._headers
            )
        except grpc.RpcError as error:
            raise _failure(error, "") from error
        return _models(listing)

    async def ready(self, timeout_s: float) -> bool:
        try:
            answer = await self._health(b"", timeout=timeout_s, metadata=self._headers)
        except grpc.RpcError:
            return False
        return bool(answer == _SERVING)

    async def close(self) -> None:
        await self._channel.close(None)


def target_of(url: str) -> tuple[str, bool]:
    """`grpc://host:port` or, with TLS, `grpcs://host:port` -> gRPC's target, and whether TLS.

    Raises: UnusableInput.
    """
    parts = urlsplit(url)
    if not parts.netloc or parts.path.strip("/") or parts.query:
        raise UnusableInput(f"{url} is no address of a gRPC server: use grpc://host:port")
    return parts.netloc, parts.scheme == "grpcs"


def _metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), value) for name, value in headers.items())  # gRPC wants lower case


def _as_it_is(message: bytes) -> bytes:
    return message


def _request(call: Call) -> pb.SegmentRequest:
    """Raises: UnusableInput for an output or a priority that the stubs have not."""
    return pb.SegmentRequest(
        image=call.picture,
        model=call.model or "",
        version=call.version or "",
        output=_number(pb.Output, "OUTPUT", call.output),
        alpha=call.alpha,
        classes=call.classes,
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


def _reply(response: pb.SegmentResponse, trailing: Any, request_id: str) -> RawReply:
    t = response.timings
    return RawReply(
        body=response.body,
        media_type=response.media_type,
        model=response.model,
        version=response.version,
        request_id=_values(trailing).get(REQUEST_ID, request_id),
        timings=Timings(t.decode_s, t.queue_s, t.infer_s, t.render_s),
    )


def _failure(error: Any, request_id: str) -> FcnError:
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


def _models(listing: pb.ListModelsResponse) -> tuple[Model, ...]:
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
