"""gRPC `segmentation.v1`: one channel a client, which keeps its connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import grpc
from grpc import aio

from fcn_client.errors import UnusableInput
from fcn_client.messages import REQUEST_ID, failure, models_of, reply_of, request_of
from fcn_client.rpc_stream import Answered, AsyncGrpcStream, Ended, GrpcStream
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc
from fcn_client.types import Call, Model, RawReply

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
        request, metadata = request_of(call), (*self._headers, (REQUEST_ID, call.request_id))
        try:
            response, done = self._stub.Segment.with_call(
                request, timeout=call.timeout_s, metadata=metadata
            )
        except grpc.RpcError as error:
            raise failure(error, call.request_id) from error
        return reply_of(response, done.trailing_metadata(), call.request_id)

    def stream(self, request_id: str, window: int, answered: Answered, ended: Ended) -> GrpcStream:
        metadata = (*self._headers, (REQUEST_ID, request_id))
        return GrpcStream(self._stub, metadata, window, answered, ended)

    def models(self, timeout_s: float) -> tuple[Model, ...]:
        try:
            listing = self._stub.ListModels(
                pb.ListModelsRequest(), timeout=timeout_s, metadata=self._headers
            )
        except grpc.RpcError as error:
            raise failure(error, "") from error
        return models_of(listing)

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
        request, metadata = request_of(call), (*self._headers, (REQUEST_ID, call.request_id))
        asked = self._stub.Segment(request, timeout=call.timeout_s, metadata=metadata)
        try:
            response = await asked
        except grpc.RpcError as error:
            raise failure(error, call.request_id) from error
        return reply_of(response, await asked.trailing_metadata(), call.request_id)

    def stream(
        self, request_id: str, window: int, answered: Answered, ended: Ended
    ) -> AsyncGrpcStream:
        metadata = (*self._headers, (REQUEST_ID, request_id))
        return AsyncGrpcStream(self._stub, metadata, window, answered, ended)

    async def models(self, timeout_s: float) -> tuple[Model, ...]:
        try:
            listing = await self._stub.ListModels(
                pb.ListModelsRequest(), timeout=timeout_s, metadata=self._headers
            )
        except grpc.RpcError as error:
            raise failure(error, "") from error
        return models_of(listing)

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
