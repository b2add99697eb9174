"""Speaks gRPC `segmentation.v1`: one channel a client, which keeps its connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import grpc
from grpc import aio

from fcn_client.aio.rpc_stream import AsyncGrpcStream
from fcn_client.grpc_messages import (
    REQUEST_ID,
    Answered,
    Ended,
    metadata_of,
    models_of,
    reply_of,
    request_of,
    target_of,
)
from fcn_client.request import at_ip, is_this_machine
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc
from fcn_client.trust import Trust
from fcn_client.types import Call, Model, RawReply
from fcn_client.unary import async_unary

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),  # answers to large images exceed the usual 4 MB
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),  # ours count against the caller's deadline and policy
    # A stream that waits for its next image is kept alive, and one whose server is gone ends.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # By default a server that was away is left alone for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
)
# The health protocol without its package: the request of all services is empty, and the answer's
# only field, number 1, is 1 for SERVING. Source: grpc/health/v1/health.proto.
_HEALTH: Final = "/grpc.health.v1.Health/Check"
_SERVING: Final = b"\x08\x01"


class AsyncGrpcTransport:
    """Sends the calls of one client over gRPC."""

    def __init__(
        self, url: str, headers: Mapping[str, str], trust: Trust, ip: str | None = None
    ) -> None:
        """ip: where to connect to, in place of what the name of the host stands for."""
        target, secure = target_of(url)
        direct = ip is not None or is_this_machine(url)
        options: tuple[tuple[str, int | str], ...] = (
            *_OPTIONS,
            ("grpc.enable_http_proxy", 0 if direct else 1),
        )
        if ip is not None:
            options = (*options, ("grpc.default_authority", target))
            target = target_of(at_ip(url, ip))[0]
        self._channel = (
            aio.secure_channel(
                target,
                grpc.ssl_channel_credentials(trust.ca, trust.key, trust.cert),
                options=options,
            )
            if secure
            else aio.insecure_channel(target, options=options)
        )
        self._headers = metadata_of(headers)
        self._stub = pb_grpc.SegmentationStub(self._channel)
        self._health = self._channel.unary_unary(_HEALTH, bytes, bytes)

    async def segment(self, call: Call) -> RawReply:
        metadata = (*self._headers, (REQUEST_ID, call.request_id))
        response, trailing = await async_unary(
            self._stub.Segment, request_of(call), call.timeout_s, metadata, call.request_id
        )
        return reply_of(response, trailing, call.request_id)

    async def stream(
        self, request_id: str, window: int, answered: Answered, ended: Ended
    ) -> AsyncGrpcStream:
        metadata = (*self._headers, (REQUEST_ID, request_id))
        return AsyncGrpcStream(self._stub, metadata, window, answered, ended)

    async def models(self, timeout_s: float) -> tuple[Model, ...]:
        request = pb.ListModelsRequest()
        listing, _ = await async_unary(self._stub.ListModels, request, timeout_s, self._headers)
        return models_of(listing)

    async def ready(self, timeout_s: float) -> bool:
        answer, _ = await async_unary(self._health, b"", timeout_s, self._headers)
        return bool(answer == _SERVING)

    async def close(self) -> None:
        await self._channel.close(None)
