"""Answers health and reflection, to anybody, and ends streams when the server stops: one that only
waits for its caller would hold up the drain until FCN_DRAIN_S is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Final, TypeVar

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from service.api.grpc.connections import Connections, Context
from service.api.grpc.messages import parse
from service.api.status import status_of
from service.errors import ServiceError

T = TypeVar("T")
MAX_BYTES: Final = 4 * 1024
"""Limits a message to either: it is a name."""
HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
REFLECTION: Final = reflection.SERVICE_NAME
"""Their full names."""
_Response = health_pb2.HealthCheckResponse


async def unless_set(closing: asyncio.Event, work: Awaitable[T]) -> T | None:
    """Returns what `work` does; None, and cancels it, when `closing` is set first."""
    working = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(closing.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        waiting.cancel()


class Health:
    """Serves grpc.health.v1, of which `Watch` goes on until its caller leaves.

    That of grpcio-health-checking holds a lock while it writes: one caller who reads nothing would
    keep the server from saying that it stops.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._serving: dict[str, bool] = {}
        self._changed = asyncio.Event()

    def set(self, serving: dict[str, bool]) -> None:
        """Says for each service whether it serves."""
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Makes the service as gRPC takes it."""
        write = _Response.SerializeToString
        return grpc.method_handlers_generic_handler(
            HEALTH,
            {
                "Check": grpc.stream_unary_rpc_method_handler(
                    self._check, response_serializer=write
                ),
                "Watch": grpc.stream_stream_rpc_method_handler(
                    self._watch, response_serializer=write
                ),
            },
        )

    async def _check(self, _: object, context: Context) -> Any:
        service = await self._service(context)
        if service not in self._serving:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {service[:80]!r}")
        self._connections.ends(context, 2)
        return _Response(status=self._status(service))

    async def _watch(self, _: object, context: Context) -> None:
        service = await self._service(context)
        closing, told = self._connections.closing, None
        try:
            while not closing.is_set():
                changed, status = self._changed, self._status(service)
                if status != told:
                    await self._connections.write(context, _Response(status=status), 2)
                    told = status
                await unless_set(closing, changed.wait())
        finally:
            self._connections.ends(context, 0)

    def _status(self, service: str) -> Any:
        if service not in self._serving:
            return _Response.SERVICE_UNKNOWN
        return _Response.SERVING if self._serving[service] else _Response.NOT_SERVING

    async def _service(self, context: Context) -> str:
        connections, kind = self._connections, health_pb2.HealthCheckRequest
        request = await _read(connections, context, kind, connections.uploads.timeout_s)
        if request is None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call has no message")
        return str(request.service)


class Reflection:
    """Serves grpc.reflection, one call of which asks as often as its caller likes."""

    def __init__(self, services: tuple[str, ...], connections: Connections) -> None:
        self._connections = connections
        # The stubs lack it.
        self._answers = reflection.aio.ReflectionServicer(services)  # type: ignore[attr-defined]

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """Makes the service as gRPC takes it."""
        handler = grpc.stream_stream_rpc_method_handler(
            self._info,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(REFLECTION, {"ServerReflectionInfo": handler})

    async def _info(self, _: object, context: Context) -> None:
        try:
            async for answer in self._answers.ServerReflectionInfo(self._read(context), context):
                await self._connections.write(context, answer, answer.ByteSize())
        finally:
            self._connections.ends(context, 0)

    async def _read(self, context: Context) -> AsyncIterator[Any]:
        kind = reflection_pb2.ServerReflectionRequest
        closing = self._connections.closing
        while (
            request := await unless_set(closing, _read(self._connections, context, kind))
        ) is not None:
            yield request


async def _read(
    connections: Connections, context: Context, kind: Any, timeout_s: float | None = None
) -> Any:
    """Reads a message of that kind; None at the end. Aborts the call when there is none."""
    try:
        raw = await connections.read(context, MAX_BYTES, timeout_s)
        if raw is None:
            return None
        return (await parse(raw, kind, connections.uploads, MAX_BYTES, {}))[0]
    except ServiceError as error:
        await context.abort(status_of(error).code, str(error))
