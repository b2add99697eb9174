"""Listens: uvicorn without its signal handlers, and ports whose errors say what to do."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Generator
from typing import Any, Final

import uvicorn

# Longer than the idle time of common load balancers (60 s): the side that reuses a connection
# must not be the one that closes it last.
KEEP_ALIVE_S: Final = 65
BACKLOG: Final = 2048


class StartError(Exception):
    """Says in one line why the server cannot start, and what to do."""


class HttpServer(uvicorn.Server):
    """Runs uvicorn, less its signal handlers: the app drains both transports together."""

    def __init__(self, app: Any, *, drain_s: float) -> None:
        """app: an ASGI application. drain_s: seconds that requests in flight get to finish."""
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",  # bounds what a request's head may take; httptools does not
                log_config=None,
                proxy_headers=False,  # nobody asks for the caller's address
                access_log=False,  # one line per request comes from telemetry
                lifespan="off",
                ws="none",
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(drain_s),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def listen(host: str, port: int, setting: str) -> socket.socket:
    """Makes a listening socket. setting: says the port. Raises: StartError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"cannot listen on host {host!r} (FCN_HOST): {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {joined(host, port)}: {error.strerror}: stop what uses the port, "
            f"or set {setting} to another"
        ) from error
    listener.setblocking(False)
    return listener


def joined(host: str, port: int) -> str:
    """`host:port`, also of an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
