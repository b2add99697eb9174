"""Speaks HTTP/1.1 on one connection: uvicorn and h11, stricter about where a request ends, and
patient with callers who have closed only their side.

A proxy and this server must see the same requests in the same bytes. Whatever h11 is lenient about
and a proxy may read otherwise is refused with 400, and the connection closed: RFC 9112, sections
2.2, 5.2 and 6.1. An upgrade is not offered, and so ignored: RFC 9110, section 7.8.
"""

from __future__ import annotations

from typing import Any, Final

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_BYTES: Final = 16 * 1024
"""Limits h11's memory of what is not whole yet, and a head that came in one piece, too."""
FIRST_PROBE_S: Final = 0.25
NEXT_PROBE_S: Final = 0.1
"""Between looks whether a caller who closed a side is still there: FIN says the same of one who is
gone, whose work would keep others waiting."""
_BEGINNING: Final = b"HTTP/1.1 "
"""Begins every answer, and is sent byte by byte to such a caller while the answer is made. One who
is gone resets the connection at the first, so that another fails."""
_VERSIONS: Final = (b"1.0", b"1.1")


class _Lines(ReceiveBuffer):
    """Takes no head or trailer with a line that ends in LF alone, or that goes on in the next, and
    no chunk's head with a CR in it."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        before = bytes(self)
        lines = super().maybe_extract_lines()
        if lines is None:
            return None
        taken = before[: len(before) - len(self)]
        if len(taken) > MAX_HEAD_BYTES:
            raise h11.LocalProtocolError(f"send a head of {MAX_HEAD_BYTES} bytes at most")
        if taken.count(b"\n") != taken.count(b"\r\n"):
            raise h11.LocalProtocolError("end each line of the head in CR LF")
        if any(line.startswith((b" ", b"\t")) for line in lines):
            raise h11.LocalProtocolError("write each header on one line")
        return lines

    def maybe_extract_next_line(self) -> bytearray | None:
        line = super().maybe_extract_next_line()
        if line is not None and line.count(b"\r") > 1:
            raise h11.LocalProtocolError("end each line of a chunk in CR LF")
        return line


class _Connection(h11.Connection):
    """Checks what h11 leaves open. begun: what was sent of an answer that is not known yet;
    fault: what is wrong with the request, once something is."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._receive_buffer = _Lines()
        self.begun = b""
        self.fault = ""

    def next_event(self) -> Any:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                _check(event)
        except h11.RemoteProtocolError as error:
            self.fault = str(error)[:200]
            raise
        return event

    def send(self, event: Any) -> Any:
        data = super().send(event)
        if self.begun and isinstance(event, h11.Response):
            data, self.begun = data[len(self.begun) :], b""
        return data


class HttpProtocol(H11Protocol):
    """Runs one connection; uvicorn makes it."""

    conn: _Connection

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Connection()
        self._half_closed = False

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's, which uvicorn's is not
        """Keeps the connection for the answers to whole requests."""
        self._half_closed = True
        return self._wait_for_answer()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # begins the next request, if one has come already
        if self._half_closed and not self._wait_for_answer():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # its answer is this one
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(f"The request is no HTTP/1.1: {self.conn.fault}")
        else:
            self.transport.close()

    def _should_upgrade(self) -> bool:
        return False

    def _wait_for_answer(self) -> bool:
        """Says whether an answer is owed; meanwhile the caller is looked for."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        if not cycle.response_started and len(self.conn.begun) < len(_BEGINNING):
            after_s = NEXT_PROBE_S if self.conn.begun else FIRST_PROBE_S
            self.loop.call_later(after_s, self._probe, cycle)
        return True

    def _probe(self, cycle: Any) -> None:
        if cycle is not self.cycle or cycle.response_started or self.transport.is_closing():
            return
        at = len(self.conn.begun)
        self.conn.begun = _BEGINNING[: at + 1]
        self.transport.write(_BEGINNING[at : at + 1])
        self._wait_for_answer()


def _check(request: h11.Request) -> None:
    """Raises: RemoteProtocolError."""
    if request.http_version not in _VERSIONS:
        raise h11.RemoteProtocolError("this server speaks HTTP/1.1 and 1.0")
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise h11.RemoteProtocolError("send Transfer-Encoding or Content-Length, not both")
    if b"transfer-encoding" in names and request.http_version == b"1.0":
        raise h11.RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding: use HTTP/1.1")
