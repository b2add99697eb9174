"""Finds out where a request ends in the bytes of its connection.

A proxy and this server must see the same requests in the same bytes. Whatever a proxy may read
otherwise is refused, and h11, which reads the heads, is lenient about some of it: RFC 9112,
sections 2.2, 3.2, 5.2, 6.1 and 7.1.
"""

from __future__ import annotations

import re
from typing import Final

import h11

MAX_HEAD_BYTES: Final = 16 * 1024
"""Takes the headers of browsers with cookies, and of proxies that add theirs: nginx takes 8 KiB for
each line, Envoy 60 KiB in all."""
MAX_HEADERS: Final = 100
"""Source: Apache's LimitRequestFields. Each costs parsing, whatever its length."""
MAX_TARGET_BYTES: Final = 8000
"""Source: RFC 9112, section 3, which asks for so much at least."""
MAX_TRAILER_BYTES: Final = 4 * 1024
MAX_CHUNK_LINE_BYTES: Final = 256
"""Nobody uses the extensions that could make the line before a chunk longer than its size."""
FREE_CHUNKS: Final = 128
MIN_CHUNK_BYTES: Final = 64
"""Chunks beyond the free ones are this long on average: each costs the event loop as much as a
large one."""

_END: Final = b"\r\n\r\n"
_LONGEST_METHOD: Final = 32
_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:%\[\]-]*")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class Refused(Exception):
    """Says what is wrong with the bytes that came, and with which status that is answered."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


def take_head(pending: bytearray) -> bytes | None:
    """Takes a request's head from the front of what came; None before all of it is there.

    pending: not empty. Raises: Refused, also of a head whose beginning shows it.
    """
    at = pending.find(_END, 0, MAX_HEAD_BYTES)
    head = bytes(pending[: at + len(_END)] if at >= 0 else pending[:MAX_HEAD_BYTES])
    line, ended, _ = head.partition(b"\r\n")
    if len(line) > MAX_TARGET_BYTES + _LONGEST_METHOD:
        raise Refused(f"send a target of {MAX_TARGET_BYTES} bytes at most", 414)
    if head[:1] <= b" ":  # of TLS, an empty line or a folded one; all others have a method here
        raise Refused("begin with a request line")
    lines = head.count(b"\r\n")
    begun = at < 0 and head.endswith(b"\r")  # whose LF may follow
    if head.count(b"\n") != lines or head.count(b"\r") != lines + begun:
        raise Refused("end each line of the head in CR LF")
    if at < 0:
        if len(pending) >= MAX_HEAD_BYTES:
            raise Refused(f"send a head of {MAX_HEAD_BYTES} bytes at most")
        return None
    if b"\r\n " in head or b"\r\n\t" in head:
        raise Refused("write each header on one line")
    if lines > MAX_HEADERS + 2:
        raise Refused(f"send {MAX_HEADERS} headers at most")
    del pending[: len(head)]
    return head


def parse_head(head: bytes) -> tuple[h11.Connection, h11.Request]:
    """Returns the request, and what writes its answer. Raises: Refused."""
    connection = h11.Connection(h11.SERVER, MAX_HEAD_BYTES)
    connection.receive_data(head)
    try:
        request = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise Refused(str(error)[:200]) from error
    if not isinstance(request, h11.Request):
        raise Refused("begin with a request line")
    if len(request.target) > MAX_TARGET_BYTES:
        raise Refused(f"send a target of {MAX_TARGET_BYTES} bytes at most", 414)
    if request.http_version not in (b"1.0", b"1.1"):
        raise Refused("this server speaks HTTP/1.1 and 1.0")
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names:
        if b"content-length" in names:
            raise Refused("send Transfer-Encoding or Content-Length, not both")
        if request.http_version == b"1.0":
            raise Refused("HTTP/1.0 has no Transfer-Encoding: use HTTP/1.1")
    for name, value in request.headers:
        if name == b"host" and not _HOST.fullmatch(value):
            raise Refused("the Host header is no host")
    return connection, request


def body_of(request: h11.Request) -> Body:
    """Makes the reader of the request's body. h11 has checked the headers that say its length."""
    for name, value in request.headers:
        if name == b"transfer-encoding":
            return Body(None)
        if name == b"content-length":
            return Body(int(value))
    return Body(0)


class Body:
    """Takes one request's body, of known length or in chunks, from what comes."""

    def __init__(self, length: int | None) -> None:
        """length: in bytes; None: it comes in chunks."""
        self._left = length or 0  # of the body, or of a chunk
        self._chunked = length is None
        self._chunks = 0
        self._bytes = 0
        self._in_chunk = False
        self._trailer_bytes: int | None = None  # None before the last chunk
        self.complete = length == 0

    def take(self, pending: bytearray) -> bytes:
        """Takes as much as there is of the body, and nothing behind it. Raises: Refused."""
        if not self._chunked:
            data = self._up_to_left(pending)
            self.complete = not self._left
            return data
        parts = []
        while not self.complete and pending and (part := self._next_part(pending)) is not None:
            parts.append(part)
        return b"".join(parts)

    def _up_to_left(self, pending: bytearray) -> bytes:
        data = bytes(pending) if len(pending) <= self._left else bytes(pending[: self._left])
        del pending[: len(data)]
        self._left -= len(data)
        return data

    def _next_part(self, pending: bytearray) -> bytes | None:
        """Returns None before a line is whole. Raises: Refused."""
        if self._left:
            data = self._up_to_left(pending)
            self._bytes += len(data)
            return data
        if self._in_chunk:
            line = _take_line(pending, 0)
            self._in_chunk = line is None
            return line
        if self._trailer_bytes is None:
            line = _take_line(pending, MAX_CHUNK_LINE_BYTES)
            if line is not None:
                self._begin_chunk(line)
            return None if line is None else b""
        line = _take_line(pending, MAX_TRAILER_BYTES - self._trailer_bytes)
        if line is None:
            return None
        self._trailer_bytes += len(line) + 2
        self.complete = not line
        if line and not _TRAILER.fullmatch(line):
            raise Refused("write trailers as headers")
        return b""

    def _begin_chunk(self, line: bytes) -> None:
        """Raises: Refused."""
        found = _CHUNK_LINE.fullmatch(line)
        if found is None:
            raise Refused("begin each chunk with its size in hexadecimal digits")
        self._chunks += 1
        if self._chunks > FREE_CHUNKS + self._bytes // MIN_CHUNK_BYTES:
            raise Refused(f"send chunks of {MIN_CHUNK_BYTES} bytes or more")
        self._left = int(found[1], 16)
        self._in_chunk = self._left > 0
        if not self._left:
            self._trailer_bytes = 0


def _take_line(pending: bytearray, max_bytes: int) -> bytes | None:
    """Takes a line, and returns it without its end; None before it is whole. Raises: Refused."""
    at = pending.find(b"\n", 0, max_bytes + 2)
    if at < 0:
        if len(pending) >= max_bytes + 2:
            raise Refused("the chunks of the body are not in order")
        return None
    line = bytes(pending[: at + 1])
    if not line.endswith(b"\r\n"):
        raise Refused("end each line of a chunk in CR LF")
    del pending[: at + 1]
    return line[:-2]
