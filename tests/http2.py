"""A connection to a test's gRPC server, frame by frame: what no client library would send."""

from __future__ import annotations

import socket
import struct
import time
from typing import Final

from tests.serving import Server
from tests.waiting import until

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""Source of all of them: RFC 9113."""


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


class Http2:
    """Sends calls and as much of their messages as a test likes."""

    def __init__(self, server: Server, window: int = 65535) -> None:
        """window: bytes of an answer that the server may send."""
        host, port = server.target.rsplit(":", 1)
        self._server = server
        self._socket = socket.create_connection((host, int(port)), timeout=10)
        self._buffer = b""
        self._next = 1
        self._window = 65535
        self._windows: dict[int, int] = {}
        self._first_window = 65535
        self.closed = False
        self.ended: set[int] = set()
        """Streams that the server has ended."""
        self._socket.sendall(_PREFACE)
        self._send(SETTINGS, 0, 0, struct.pack(">HI", 4, window))

    def close(self) -> None:
        self._socket.close()

    def call(self, path: str) -> int:
        """Begins a call and returns its stream."""
        stream, self._next = self._next, self._next + 2
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": path,
            ":authority": "x",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        self._windows[stream] = self._first_window
        self._send(HEADERS, _END_HEADERS, stream, block)
        return stream

    def headers_without_end(self, n_bytes: int) -> int:
        """Sends fields of a call that never begins, until the server has enough; returns how many
        bytes were sent."""
        stream, self._next = self._next, self._next + 2
        sent = 0
        fields = b"\0\x01a\x01b" * 3000
        self._send(HEADERS, 0, stream, fields)
        while sent < n_bytes and not self.closed:
            self._send(CONTINUATION, 0, stream, fields)
            sent += len(fields)
        return sent

    def message(self, stream: int, length: int, data: bytes = b"", end: bool = False) -> None:
        """Sends how long a message is, and of it `data`, until the server has enough."""
        self.more(stream, b"\0" + struct.pack(">I", length) + data, end)

    def more(self, stream: int, left: bytes, end: bool = False) -> None:
        """Sends what follows of a message that has begun."""
        while left and not self.closed and stream not in self.ended:
            n_bytes = min(16384, self._window, self._windows[stream], len(left))
            if n_bytes <= 0:
                self.read(0.01)
                continue
            last = end and n_bytes == len(left)
            self._send(DATA, _END_STREAM if last else 0, stream, left[:n_bytes])
            self._window -= n_bytes
            self._windows[stream] -= n_bytes
            left = left[n_bytes:]

    def read(self, seconds: float) -> None:
        """Takes what the server says for so long, or until it closes."""
        ends = time.monotonic() + seconds
        while not self.closed and (left := ends - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                some = self._socket.recv(65536)
            except TimeoutError:
                return
            except OSError:
                some = b""
            self.closed = not some
            self._buffer += some
            self._take()

    def wait(self, stream: int) -> None:
        """Waits until the server has ended the stream."""

        def has_ended() -> bool:
            self.read(0.01)
            return stream in self.ended

        def told() -> str:
            shut = ", whose connection is closed," if self.closed else ""
            return f"The end of stream {stream}{shut} said by\n{self._server.log()[-4000:]}\n"

        until(has_ended, told)

    def _take(self) -> None:
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + length:
                return
            kind, flags = self._buffer[3], self._buffer[4]
            stream = int.from_bytes(self._buffer[5:9], "big")
            payload, self._buffer = self._buffer[9 : 9 + length], self._buffer[9 + length :]
            if kind == WINDOW:
                more = int.from_bytes(payload, "big")
                if stream:
                    self._windows[stream] += more
                else:
                    self._window += more
            elif kind == SETTINGS and not flags & _ACK:
                for at in range(0, length, 6):
                    name, value = struct.unpack_from(">HI", payload, at)
                    if name == 4:
                        self._first_window = value
                self._send(SETTINGS, _ACK, 0, b"")
            elif kind == PING and not flags & _ACK:
                self._send(PING, _ACK, 0, payload)
            elif kind == RESET or (kind in (HEADERS, DATA) and flags & _END_STREAM):
                self.ended.add(stream)

    def _send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
        try:
            self._socket.sendall(head + payload)
        except OSError:
            self.closed = True
