"""A connection to a test's server, byte by byte."""

from __future__ import annotations

import socket

from tests.serving import Server


class Link:
    """Speaks HTTP/1.1; what is written and read is up to the test."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection(server.http_address, timeout=10)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Reads status, headers by lower-case name, none twice, and body."""
        status = int(self.file.readline().split()[1])
        headers: dict[str, str] = {}
        while line := self.file.readline().strip().decode():
            name, _, value = line.partition(": ")
            name = name.lower()
            assert name not in headers
            headers[name] = value
        return status, headers, self.file.read(int(headers["content-length"]))

    def is_over(self) -> bool:
        """Says whether the server ends the connection in order, which it is given time for."""
        return self.file.read(1) == b""

    def closed(self) -> bool:
        """Says whether the server ends the connection, by a reset, too."""
        try:
            return self.is_over()
        except ConnectionResetError:
            return True
