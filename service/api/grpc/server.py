"""Runs the gRPC server: services, health and reflection."""

from __future__ import annotations

import logging
from typing import Any, Final

import grpc
from grpc import aio

from service.api.grpc.closing import HEALTH, REFLECTION, Health, Reflection
from service.api.grpc.connections import Connections
from service.config import ApiConfig
from service.tls import Certificate, Certificates

OVERHEAD_BYTES: Final = 64 * 1024
"""Room of a message beyond the limit of any method: its error is then ours, and says what to do."""
MAX_STREAMS: Final = 1024
"""Calls at once of one connection; gRPC's clients let more wait, once they know."""
MAX_CONNECTIONS: Final = 1000
"""A process may open 1024 files by default."""
IDLE_MS: Final = 300_000
"""A connection without a call is closed; gRPC's clients open another when they need it."""
HANDSHAKE_MS: Final = 10_000
COMPRESSIONS: Final = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
}


class GrpcServer:
    """Runs services: `add`, `bind`, `start`, `set_serving`, then `retire` and `stop`."""

    def __init__(self, config: ApiConfig, connections: Connections) -> None:
        """Must be made inside the event loop that runs it. connections: the `closing` of which is
        set at the end, for streams to read no more, send the answers they owe, and end."""
        self._connections = connections
        self._server = aio.server(
            options=[
                ("grpc.max_receive_message_length", config.max_tensor_bytes + OVERHEAD_BYTES),
                # What the largest accepted image makes is always sent.
                ("grpc.max_send_message_length", -1),
                # Compressed messages come as they are: unpacked by gRPC they would count nowhere.
                ("grpc.per_message_decompression", 0),
                # Else a second server would silently share the port.
                ("grpc.so_reuseport", 0),
                # Callers may ping as often as their network needs, with and without a call: by
                # default the third ping within five minutes would end a stream that waits.
                ("grpc.http2.max_ping_strikes", 0),
                # What a call may send before anybody reads it stays at 64 KiB.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
                ("grpc.max_connection_idle_ms", IDLE_MS),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            ],
            compression=COMPRESSIONS[config.grpc_compression],
        )
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_fault)
        self._health = Health(connections)
        self._services: list[str] = []
        self._added: list[grpc.GenericRpcHandler[Any, Any]] = []
        self._unknown: grpc.GenericRpcHandler[Any, Any] | None = None
        self._retired = False
        self._port: int | None = None

    def add(self, service: str, handler: grpc.GenericRpcHandler[Any, Any]) -> None:
        """Adds one service, before `start`. service: its full name."""
        self._added.append(handler)
        self._services.append(service)

    def add_unknown(self, handler: grpc.GenericRpcHandler[Any, Any]) -> None:
        """Sets what answers calls of no service."""
        self._unknown = handler

    def bind(self, address: str, certificates: Certificates | None = None) -> int:
        """Listens on `host:port` and returns the port. certificates: None speaks without TLS.

        Raises: OSError when it is taken.
        """
        try:
            if certificates is not None:
                self._port = self._server.add_secure_port(address, _credentials(certificates))
            else:
                self._port = self._server.add_insecure_port(address)
            return self._port
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}") from error

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        """Returns what answers calls, in the order in which they are asked for a method."""
        reflection = Reflection((*self._services, HEALTH, REFLECTION), self._connections)
        last = () if self._unknown is None else (self._unknown,)
        return (*self._added, self._health.handler(), reflection.handler(), *last)

    async def start(self) -> None:
        self._server.add_generic_rpc_handlers(self.handlers())
        self.set_serving(False)
        await self._server.start()
        if self._port is not None:
            self._connections.watch(self._port)

    def set_serving(self, serving: bool) -> None:
        """Sets what grpc.health.v1 says of the server and of each of its services."""
        if not self._retired:
            self._health.set(dict.fromkeys(("", *self._services), serving))

    def retire(self) -> None:
        """Says that it serves no more, for good."""
        self.set_serving(False)
        self._retired = True

    async def stop(self, grace_s: float) -> None:
        """Takes no new calls, and cancels those still running after `grace_s`."""
        self._connections.closing.set()
        await self._server.stop(grace_s)


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Makes credentials that follow the certificate in force."""

    def made(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
        pairs = [(certificate.key, certificate.chain)]
        return grpc.ssl_server_certificate_configuration(pairs, certificate.client_ca)

    told = certificates.current

    def fetched() -> grpc.ServerCertificateConfiguration | None:
        """Runs before each handshake, on gRPC's threads; None: nothing has changed."""
        nonlocal told
        current = certificates.current
        if current is told:
            return None
        told = current
        return made(current)

    return grpc.dynamic_ssl_server_credentials(
        made(told),
        fetched,  # type: ignore[arg-type]  # stubs do not know None
        require_client_authentication=certificates.asks_clients,
    )


def _is_fault(record: logging.LogRecord) -> bool:
    """Drops what gRPC logs of an answer that could not be sent: its caller is gone."""
    return not (record.exc_info and isinstance(record.exc_info[1], aio.InternalError))
