"""Runs one request of a connection through the ASGI application, and writes its answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import unquote

import h11

from service.framing import Body

_log = logging.getLogger("fcn.http")
_PHRASES: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_CONTINUE: Final = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
_END: Final = h11.EndOfMessage()
_CLOSE: Final = (b"connection", b"close")
Headers = Sequence[tuple[bytes, bytes]]


class Link(Protocol):
    """Carries the bytes: the connection, as a request sees it."""

    @property
    def stopping(self) -> bool: ...

    async def writable(self) -> None: ...

    def write(self, parts: list[bytes], *, begins: bool = False) -> None: ...

    def go_on(self) -> None: ...

    def answered(self, *, keep: bool) -> None: ...

    def end(self, why: Any) -> None: ...


class Exchange:
    """Holds one request and its answer.

    body: of the request. started: a part of the answer was sent. answered: all of it is with the
    transport.
    """

    def __init__(
        self,
        link: Link,
        writer: h11.Connection,
        request: h11.Request,
        body: Body,
        addresses: Mapping[str, object],
        default_headers: Headers,
    ) -> None:
        path, _, query = request.target.partition(b"?")
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode(),
            "method": request.method.decode(),
            "path": unquote(path.decode()),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            **addresses,
        }
        self._link = link
        self._writer = writer
        self._default_headers = default_headers
        self._expects_continue = writer.they_are_waiting_for_100_continue
        self._news = asyncio.Event()
        self._content = bytearray()
        self._given = False  # whether the application has the end of the body
        self._start: Mapping[str, Any] | None = None
        self._left = False
        self.body = body
        self.started = False
        self.answered = False

    @property
    def waiting_bytes(self) -> int:
        """Counts what came of the body and was not asked for yet."""
        return len(self._content)

    def received(self, content: bytes) -> None:
        """Takes a part of the body; nobody wants it once the answer is given."""
        self._expects_continue = False
        if not self.answered:
            self._content += content
            self._news.set()

    def leave(self) -> None:
        """Tells the application that the caller has gone."""
        self._left = True
        self._news.set()

    async def run(self, app: Any) -> None:
        try:
            await app(self._scope, self._receive, self._send)
            if not self.answered and not self._left:
                raise RuntimeError("the application returned without an answer")
        except Exception:
            _log.exception("the application failed")
            await self._answer_500()
        except asyncio.CancelledError:  # the time to finish is over
            self._link.end("shutdown")

    async def _answer_500(self) -> None:
        if self._left or self.answered:
            return
        if self.started:
            self._link.end("failed")
            return
        text = b"Internal Server Error"
        kind = (b"content-type", b"text/plain; charset=utf-8")
        length = (b"content-length", b"%d" % len(text))
        self._start = {"status": 500, "headers": [kind, length, _CLOSE]}
        await self._send({"type": "http.response.body", "body": text})

    async def _receive(self) -> dict[str, Any]:
        if self._expects_continue and not self.started:
            self._expects_continue = False
            self._link.write([self._writer.send(_CONTINUE)])
        while not (self._left or self.answered):
            if not self._given and (self._content or self.body.complete):
                content, self._content = bytes(self._content), bytearray()
                self._given = self.body.complete
                self._link.go_on()
                return {"type": "http.request", "body": content, "more_body": not self._given}
            self._news.clear()
            await self._news.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Mapping[str, Any]) -> None:
        """Sends head and first part of the body in one piece: two would wake the caller twice."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self.started:
            await self._link.writable()
        if self._left:
            return
        parts = []
        if begins := not self.started:
            if self._start is None:
                raise RuntimeError("an answer begins with its head")
            parts.append(self._writer.send(self._head(self._start)))
            self.started = True
        body = message.get("body", b"")
        if body and self._scope["method"] != "HEAD":
            parts.append(self._writer.send(h11.Data(data=body)))
        if not message.get("more_body", False):
            parts.append(self._writer.send(_END))
            self.answered = True
            self._news.set()
        self._link.write(parts, begins=begins)
        if self.answered:
            self._link.answered(keep=self._writer.our_state is not h11.MUST_CLOSE)

    def _head(self, start: Mapping[str, Any]) -> h11.Response:
        headers = [*self._default_headers, *start.get("headers", ())]
        if self._link.stopping and _CLOSE not in headers:
            headers.append(_CLOSE)
        status = start["status"]
        return h11.Response(status_code=status, headers=headers, reason=_PHRASES.get(status, b""))
