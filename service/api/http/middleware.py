"""The outermost layer of REST: each request gets an id, a record, and an orderly end.

Plain ASGI, not Starlette's BaseHTTPMiddleware, which copies bodies through a queue of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.http.problem import problem
from service.api.request_id import HEADER, request_id
from service.api.status import CLIENT_CLOSED_REQUEST
from service.telemetry import RequestRecord, Telemetry

# How long, and for how many bytes, a refused upload is read on and thrown away after its answer
# was sent. Closing at once would reset the connection, and a caller that still writes might
# never see the answer.
LINGER_S: Final = 1.0
LINGER_BYTES: Final = 32 * 1024 * 1024
# A body announced as no longer than this is waited for, and the connection kept: under load a new
# connection for every refusal would cost more than the refusal.
KEPT_BYTES: Final = 1024 * 1024

_log = logging.getLogger("fcn.rest")


def internal_problem(record: RequestRecord) -> Response:
    """A fault of our own."""
    return problem(
        500,
        "Internal error",
        "the server failed: try again, and report the request id if it recurs",
        kind="internal-error",
        record=record,
    )


class Exchange:
    """Wraps the application; see the module docstring."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        record = RequestRecord("rest", "other", request_id(headers.get(HEADER)))
        scope["fcn_record"] = record
        flow = _Flow(receive, send, record, headers)
        try:
            await self._app(scope, flow.receive, flow.send)
        except ClientDisconnect:
            record.code = str(CLIENT_CLOSED_REQUEST)
        except asyncio.CancelledError:
            record.code = str(CLIENT_CLOSED_REQUEST)
            raise
        except Exception:
            _log.exception("request %s failed", record.request_id)
            if flow.started:
                raise
            await internal_problem(record)(scope, flow.receive, flow.send)
        finally:
            self._telemetry.finished(record)


class _Flow:
    """The two ASGI channels of one request, watched."""

    def __init__(
        self, receive: Receive, send: Send, record: RequestRecord, headers: Headers
    ) -> None:
        self._receive = receive
        self._send = send
        self._record = record
        length = headers.get("content-length", "0")
        chunked = "transfer-encoding" in headers
        self._unread = length != "0" or chunked
        short = length.isdigit() and len(length) < 10 and int(length) <= KEPT_BYTES
        self._closes = chunked or not short
        self.started = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._record.code = str(message["status"])
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._record.request_id
            if self._unread and self._closes:
                headers["Connection"] = "close"
        elif self._unread and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        left = LINGER_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while self._unread and left > 0:
                    left -= len((await self.receive()).get("body", b""))
