"""Speaks HTTP/1.1 on one connection, and hands its requests to an ASGI application.

uvicorn makes one for each connection that it accepts. h11 reads the heads and writes the answers;
`service.framing` says where a request ends; `service.connections` bounds all connections together.
Callers who have closed only their side are answered, but not over TLS. An upgrade is not offered,
and so ignored: RFC 9110, section 7.8.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from service.connections import Connections
from service.exchange import Exchange
from service.framing import MAX_HEAD_BYTES, Refused, body_of, parse_head, take_head
from service.telemetry import Ending
from service.tls import CLIENT_CA, Certificates, NotTls, Tls

READ_BYTES: Final = 64 * 1024
"""Taken from the system at once: an ordinary image in one piece, and little to hold of those who
send ahead."""
UNREAD_BYTES: Final = 64 * 1024
"""More of his answers than that must be taken before a caller's next request begins."""
BODY_BYTES: Final = 128 * 1024
"""Reading stops while more of a body waits for the application."""
FIRST_PROBE_S: Final = 0.25
NEXT_PROBE_S: Final = 0.1
"""Between looks whether a caller who closed a side is still there: FIN says the same of one who is
gone, whose work would keep others waiting."""
OPEN_TARGETS: Final = (b"/livez", b"/readyz")
"""Answered without a client certificate: those who probe a container have none."""
_HSTS: Final = (b"strict-transport-security", b"max-age=31536000")
"""Has browsers use TLS for a year. Source: RFC 6797, section 6.1; the value is what hstspreload.org
asks for at least."""
_BEGINNING: Final = b"HTTP/1.1 "
"""Begins every answer, and is sent byte by byte to such a caller while the answer is made. One who
is gone resets the connection at the first, so that another fails."""


class HttpProtocol(asyncio.BufferedProtocol):
    """Runs one connection. Exactly one request at a time is begun and not answered."""

    def __init__(
        self,
        connections: Connections,
        *,
        config: uvicorn.Config,
        server_state: ServerState,
        certificates: Certificates | None = None,
        **_: object,
    ) -> None:
        """certificates: None speaks without TLS."""
        self._app: Any = config.loaded_app
        self._connections = connections
        self._bounds = connections.bounds
        self._server = server_state
        self._certificates = certificates
        self._tls: Tls | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._pending = bytearray()
        self._exchange: Exchange | None = None
        self._head: bytes | None = None  # of a request that waits for its turn
        self._reading = True
        self._half_closed = False
        self._why: Ending = "caller"
        self._ended = False  # whether the connections were told
        self._begun = b""  # what was sent of an answer that is not known yet
        self._writable: asyncio.Future[None] | None = None  # while it is not
        self._written = 0
        # When its caller last sent something, and when what he is waited for began.
        self._moved_s = self._began_s = self._loop.time()
        # Of an answer that waits for its reader: when we last looked, and what was taken by then.
        self._window: tuple[float, int] | None = None
        self.address = ""
        self.turn = 0
        self.ahead = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        transport.set_write_buffer_limits(UNREAD_BYTES)
        peer = transport.get_extra_info("peername")
        here = transport.get_extra_info("sockname")
        if self._certificates is not None:
            self._tls = self._certificates.accept()
        self.address = str(peer[0]) if peer else ""
        self._addresses = {
            "client": tuple(peer[:2]) if peer else None,
            "server": tuple(here[:2]) if here else None,
            "scheme": "http" if self._tls is None else "https",
        }
        if self._connections.add(self):
            self._server.connections.add(self)  # type: ignore[arg-type]  # for shutdown()
        else:
            self._say(503, "the server has no room for another connection: try again in a moment")
            self.end("refused")

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._exchange is not None:
            self._exchange.leave()
        self.resume_writing()
        self._end(self._why)

    def get_buffer(self, sizehint: int) -> bytearray:
        self._buffer = bytearray(READ_BYTES)
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        came = memoryview(self._buffer)[:nbytes]
        self._buffer = bytearray()
        if said := came if self._tls is None else self._decrypted(self._tls, came):
            self._moved_s = self._loop.time()
            if self._exchange is None and self._head is None and not self._pending:
                self._began_s = self._moved_s
                self.ahead = False
            self._pending += said
        self.go_on()
        if self._tls is not None and self._tls.ended:
            self.close("caller")

    def eof_received(self) -> bool:
        """Keeps the connection for the answers to whole requests, where TLS does not forbid it."""
        self._half_closed = self._tls is None
        return self._half_closed and self._waits_for_answer()

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()
        self._connections.unread(self)

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None
            self._connections.read(self)
            self.go_on()
            self._close_if_left()

    def shutdown(self) -> None:
        """Ends the connection once the answer that is owed is given; uvicorn calls it."""
        if self._head is None and (self._exchange is None or self._exchange.answered):
            self.close("shutdown")

    @property
    def stopping(self) -> bool:
        return self._connections.stopping

    @property
    def unread_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    async def writable(self) -> None:
        """Waits until the caller has read most of what was written."""
        if self._writable is not None:
            await asyncio.shield(self._writable)

    def write(self, parts: list[bytes], *, begins: bool = False) -> None:
        """Sends them in one piece. begins: an answer, of which a part may have been sent."""
        if begins and self._begun:
            parts[0] = parts[0][len(self._begun) :]
            self._begun = b""
        if self._tls is not None:
            parts = [self._tls.sealed(parts)]
        self._written += sum(map(len, parts))
        self._transport.writelines(parts)

    def answered(self, *, keep: bool) -> None:
        """Goes on with the next request; the answer is with the transport."""
        if not keep or self.stopping:
            self.close("shutdown" if self.stopping else "answered")
            return
        self._began_s = self._loop.time()
        self.go_on()
        self._close_if_left()

    def go_on(self) -> None:
        """Does as much as the bytes that came allow, and reads on if they are not enough."""
        try:
            while self._pending and not self._transport.is_closing() and self._advance():
                pass
        except Refused as error:
            self._refuse(error)
        exchange = self._exchange
        if exchange is not None and exchange.answered and exchange.body.complete:
            self._exchange = None
        waiting = 0 if exchange is None else exchange.waiting_bytes
        reading = len(self._pending) < MAX_HEAD_BYTES and waiting < BODY_BYTES
        if self._tls is not None and self._writable is not None:
            reading = False  # TLS answers on its own to what a peer may send
        if reading != self._reading and not self._transport.is_closing():
            self._reading = reading
            (self._transport.resume_reading if reading else self._transport.pause_reading)()

    def close(self, why: Ending) -> None:
        """Ends it in order, behind the answers that are still to be read."""
        if not self._transport.is_closing():
            self._why = why
            if self._tls is not None:
                self._transport.write(self._tls.closing())
            self._transport.close()

    def end(self, why: Ending) -> None:
        """Ends it at once, and answers who was slow with a head."""
        if why == "slow_head":
            self._say(408, f"the head of the request took longer than {self._bounds.head_s:g} s")
        self._end(why)
        if self.unread_bytes:
            self._transport.abort()
        else:
            self.close(why)

    def moved_s(self) -> float | None:
        if self._window is not None:
            return self._window[0]
        exchange = self._exchange
        owed = exchange is not None and exchange.body.complete and not exchange.answered
        owed = owed or self._head is not None
        return None if owed and not self.unread_bytes else self._moved_s

    def overdue(self, now_s: float) -> Ending | None:
        unread = self.unread_bytes
        if unread:
            return self._stopped_reading(now_s, self._written - unread)
        self._window = None
        waited_s, exchange = now_s - self._began_s, self._exchange
        if self._tls is not None and not self._tls.ready:
            return None if waited_s <= self._bounds.head_s else "tls"
        if exchange is not None:
            bounds = self._bounds
            limit_s = bounds.rest_of_body_s if exchange.answered else bounds.body_s
            return None if exchange.body.complete or waited_s <= limit_s else "slow_body"
        if self._head is not None:
            return None
        if self._pending:
            return None if waited_s <= self._bounds.head_s else "slow_head"
        return None if waited_s <= self._bounds.idle_s else "idle"

    def _stopped_reading(self, now_s: float, taken: int) -> Ending | None:
        if self._window is None:
            self._window = now_s, taken
        began_s, before = self._window
        if now_s - began_s < self._bounds.reading_s:
            return None
        self._window = now_s, taken
        return "unread" if taken - before < self._bounds.min_read_bytes else None

    def _decrypted(self, tls: Tls, came: memoryview) -> bytes:
        """Returns what the peer said; nothing once the connection is to end."""
        said = b""
        try:
            said = tls.received(came)
        except ssl.SSLError:
            self.close("tls")  # behind the alert that says why
        except NotTls:
            self._tls = None
            self._say(400, "this port speaks TLS: ask for https:// in place of http://")
            self.close("tls")
        if owed := tls.owed():
            self._transport.write(owed)
        return said

    def _advance(self) -> bool:
        """Takes the next part of what came; False if that needs more. Raises: Refused."""
        exchange = self._exchange
        if exchange is None:
            # Who does not read his answers gets no further ones.
            if self._head is not None or self._writable is not None:
                return False
            self._head = take_head(self._pending)
            if self._head is not None:
                self._connections.turns.ask(self)
            return self._exchange is not None
        if exchange.body.complete:
            if exchange.answered:
                self._exchange = None
            return exchange.answered
        if exchange.waiting_bytes >= BODY_BYTES:
            return False
        exchange.received(exchange.body.take(self._pending))
        return exchange.body.complete

    def begin(self) -> None:
        """Runs the request whose turn it is."""
        head, self._head = self._head, None
        if head is None or self._transport.is_closing():
            return
        try:
            self._run(head)
        except Refused as error:
            self._refuse(error)
        else:
            self.go_on()

    def _run(self, head: bytes) -> None:
        """Raises: Refused."""
        self.ahead = True  # whatever comes before the answer
        writer, request = parse_head(head)
        self._began_s = self._loop.time()
        self._exchange = exchange = Exchange(
            self, writer, request, body_of(request), self._addresses, self._headers
        )
        app = self._app if self._let_in(request.target) else _wants_certificate
        task = self._loop.create_task(exchange.run(app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def _let_in(self, target: bytes) -> bool:
        """Says whether the caller has the certificate that this server may want."""
        tls, certificates = self._tls, self._certificates
        if tls is None or certificates is None or not certificates.asks_clients:
            return True
        return target in OPEN_TARGETS or tls.knows_client

    @property
    def _headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Lists those of every answer."""
        headers = self._server.default_headers
        return headers if self._tls is None else [*headers, _HSTS]

    def _refuse(self, error: Refused) -> None:
        exchange = self._exchange
        begun = exchange is not None and (exchange.started or exchange.answered)
        if exchange is not None:
            exchange.leave()
        if not begun:
            self._say(error.status, f"The request is no HTTP/1.1: {error}")
        self._pending.clear()
        self.close("bad_request")

    def _say(self, status: int, text: str) -> None:
        """Answers without the application; over TLS not before its handshake."""
        if self._tls is not None and not self._tls.ready:
            return
        body = f"{text}\r\n".encode()
        head = b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())
        for name, value in (
            *self._headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ):
            head += name + b": " + value + b"\r\n"
        self.write([head + b"\r\n" + body], begins=True)

    def _end(self, why: Ending) -> None:
        if not self._ended:
            self._ended = True
            self._connections.remove(self, why)

    def _close_if_left(self) -> None:
        if self._half_closed and not self._waits_for_answer():
            self.close("caller")

    def _waits_for_answer(self) -> bool:
        """Says whether an answer is owed to a caller who closed a side, who is looked for then."""
        exchange = self._exchange
        if exchange is None:  # what he sent ahead may be whole, and waits until he has read
            return self._head is not None or self._writable is not None and bool(self._pending)
        if exchange.answered or not exchange.body.complete:
            return False
        if not exchange.started and len(self._begun) < len(_BEGINNING):
            after_s = NEXT_PROBE_S if self._begun else FIRST_PROBE_S
            self._loop.call_later(after_s, self._probe, exchange)
        return True

    def _probe(self, exchange: Exchange) -> None:
        if exchange is not self._exchange or exchange.started or self._transport.is_closing():
            return
        at = len(self._begun)
        self._transport.write(_BEGINNING[at : at + 1])
        self._begun = _BEGINNING[: at + 1]
        self._waits_for_answer()


async def _wants_certificate(scope: Any, receive: Any, send: Any) -> None:
    """Answers, in place of the application, whoever has no client certificate."""
    document = {
        "type": "urn:fcn:problem:not-allowed",
        "title": "Not allowed",
        "status": 403,
        "detail": "this server wants a client certificate, signed by an authority of its "
        f"{CLIENT_CA}: send yours",
    }
    kind = (b"content-type", b"application/problem+json")
    body = json.dumps(document).encode()
    headers = [kind, (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
