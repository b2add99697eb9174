"""Runs the gRPC server: services, health and reflection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.config import ApiConfig

# The other fields of a request around its image.
MESSAGE_OVERHEAD_BYTES: Final = 64 * 1024
COMPRESSIONS: Final = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
}


class GrpcServer:
    """Runs services: `add`, `bind`, `start`, `set_serving`, then `retire` and `stop`."""

    def __init__(self, config: ApiConfig, *, close_streams: Callable[[], None]) -> None:
        """Must be made inside the event loop that runs it. close_streams: called at its end, lets
        streams read no more."""
        self._close_streams = close_streams
        self._server = aio.server(
            options=[
                (
                    "grpc.max_receive_message_length",
                    config.max_tensor_bytes + MESSAGE_OVERHEAD_BYTES,
                ),
                # What the largest accepted image makes is always sent.
                ("grpc.max_send_message_length", -1),
                # Else a second server would silently share the port.
                ("grpc.so_reuseport", 0),
                # Callers may ping as often as their network needs, with and without a call: by
                # default the third ping within five minutes would end a stream that waits.
                ("grpc.http2.max_ping_strikes", 0),
            ],
            compression=COMPRESSIONS[config.grpc_compression],
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # stubs lack it
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services: list[str] = []

    def add(self, service: str, handler: grpc.GenericRpcHandler[Any, Any]) -> None:
        """Adds one service, before `start`. service: its full name."""
        self._server.add_generic_rpc_handlers((handler,))
        self._services.append(service)

    def bind(self, address: str) -> int:
        """Listens on `host:port` and returns the port. Raises: OSError when it is taken."""
        try:
            return self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error

    async def start(self) -> None:
        reflection.enable_server_reflection(
            (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """Sets what grpc.health.v1 says of the server and of each of its services."""
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if serving else kinds.NOT_SERVING
        for service in (health.OVERALL_HEALTH, *self._services):
            await self._health.set(service, status)

    async def retire(self) -> None:
        """Says that it serves no more, for good."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, and cancels those still running after `grace_s`."""
        self._close_streams()
        await self._server.stop(grace_s)
