"""Listens: uvicorn without its signal handlers, and ports whose errors say what to do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
from collections.abc import Generator, Iterable
from functools import partial
from typing import Any, Final

import uvicorn

from service.config import ApiConfig
from service.connection import HttpProtocol
from service.connections import Bounds, Connections
from service.errors import StartError
from service.telemetry import Telemetry
from service.tls import Certificates

BACKLOG: Final = 2048
UNSENT_BYTES: Final = 128 * 1024
"""Linux keeps megabytes of an answer for a caller who does not read, and counts them as ours."""
UNHEARD_S: Final = 0.1
"""At the end a request that was sent already may take so long to be read."""
_EVERYWHERE: Final = ("0.0.0.0", "::")
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class HttpServer(uvicorn.Server):
    """Runs uvicorn, less its signal handlers: the app drains both transports together."""

    def __init__(
        self,
        app: Any,
        config: ApiConfig,
        telemetry: Telemetry,
        bounds: Bounds | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        """app: an ASGI application. bounds: in place of those that go with the config.
        certificates: None speaks without TLS."""
        self._connections = Connections(telemetry, bounds or Bounds.of(config))
        self._made = partial(HttpProtocol, self._connections, certificates=certificates)
        super().__init__(
            uvicorn.Config(
                app,
                http=self._made,  # type: ignore[arg-type]  # which is called, and no more
                log_config=None,
                proxy_headers=False,  # no answer has an address in it, nor is the caller's asked
                access_log=False,  # one line per request comes from telemetry
                lifespan="off",
                ws="none",
                server_header=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=math.ceil(config.drain_s),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers those who have connected already, then ends as uvicorn does.

        It would close them unheard: those that the system has accepted and asyncio has not, and
        those whose request has not been read.
        """
        self._connections.stopping = True
        loop = asyncio.get_running_loop()
        listeners = [each for each in sockets or () if each.fileno() >= 0]  # else closed already
        for listener in listeners:
            loop.remove_reader(listener)
        await asyncio.sleep(0)  # those that asyncio has just accepted get their protocol
        waiting = _waiting_at(listeners)
        # Nothing is awaited since: a port that closes resets whoever has come meanwhile.
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.close()
        made = partial(self._made, config=self.config, server_state=self.server_state)
        taking = (loop.connect_accepted_socket(made, link) for link in waiting)
        await asyncio.gather(*taking, return_exceptions=True)  # some may have left again
        await asyncio.sleep(UNHEARD_S)
        await asyncio.sleep(0)  # a loop that was held up for so long reads only now
        await super().shutdown(sockets)


def _waiting_at(listeners: Iterable[socket.socket]) -> list[socket.socket]:
    """Accepts those who have connected, as far as they and the system know."""
    links = []
    for listener in listeners:
        with contextlib.suppress(OSError):  # nobody waits any more, or no descriptor is left
            for _ in range(BACKLOG):
                links.append(listener.accept()[0])
    return links


def listen(host: str, port: int, setting: str) -> list[socket.socket]:
    """Opens listening sockets, all on one port: one for each address that `host` has here; for
    0.0.0.0 or ::, one for every address of both families. gRPC does the same.

    setting: the name of that which says the port. Raises: StartError.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise StartError(f"cannot listen on host {host!r} (FCN_HOST): {error}") from error
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    everywhere = any(address[0] in _EVERYWHERE for _, address in addresses)
    if everywhere:
        addresses = [(socket.AF_INET6, ("::", port)), (socket.AF_INET, ("0.0.0.0", port))]
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    for family, (address, _, *scope) in addresses:
        try:
            listener = _listener(family, (address, port, *scope), both_families=everywhere)
        except OSError as error:
            if error.errno in _NOT_HERE:  # localhost is often ::1, too, where there is no IPv6
                absent = error
                continue
            for listener in listeners:
                listener.close()
            raise _refused(host, port, error, setting) from error
        listeners.append(listener)
        port = listener.getsockname()[1]
        if everywhere:
            break
    if not listeners:
        raise StartError(f"cannot listen on host {host!r} (FCN_HOST): {absent}")
    return listeners


def _listener(family: int, address: tuple[Any, ...], *, both_families: bool) -> socket.socket:
    """Raises: OSError."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # each connection has it from here
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both_families)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _refused(host: str, port: int, error: OSError, setting: str) -> StartError:
    return StartError(
        f"cannot listen on {joined(host, port)}: {error.strerror}: stop what uses the port, "
        f"or set {setting} to another"
    )


def joined(host: str, port: int) -> str:
    """Joins `host:port`, also of an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
