"""A way to a server that can hang, be cut and come back, for every transport."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Relay:
    """Passes bytes on, both ways, from an address of its own. connections: how many it took."""

    def __init__(self, url: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self._there = urlsplit(url)
        self._address = host, port
        self._flows = threading.Event()
        self._flows.set()
        self._sockets: list[socket.socket] = []
        self.connections = 0
        self.revive()

    @property
    def url(self) -> str:
        return f"{self._there.scheme}://{self._address[0]}:{self._address[1]}"

    @property
    def port(self) -> int:
        return self._address[1]

    def revive(self) -> None:
        self._listener = socket.create_server(self._address)
        self._address = self._listener.getsockname()[:2]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def hang(self) -> None:
        self._flows.clear()

    def heal(self) -> None:
        self._flows.set()

    def die(self) -> None:
        for held in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
            held.close()
        self._sockets.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.heal()
        self.die()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here = listener.accept()[0]
                there = socket.create_connection((self._there.hostname, self._there.port))
                self.connections += 1
                self._sockets += [here, there]
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._flows.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
