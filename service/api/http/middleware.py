"""Wraps REST: each request gets a call, is let in by its key, and ends in order.

Plain ASGI, not Starlette's BaseHTTPMiddleware, which copies bodies through a queue of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.call import HEADER, Call, Calls
from service.api.http import openapi
from service.api.http.problem import OIP_PREFIX, error_response
from service.core.types import Timings
from service.errors import Cancelled, let_go
from service.tracing import Attributes

T = TypeVar("T")

OPEN_PATHS: Final = frozenset(
    {
        *("/", openapi.DOCS_PATH, openapi.OPENAPI_PATH, openapi.STATUS_PATH),
        *("/livez", "/readyz", "/metrics"),
        *(f"{OIP_PREFIX}/health/live", f"{OIP_PREFIX}/health/ready"),
    }
)
"""These need no API key. All else does, also an address that does not exist."""
OPEN_FOLDERS: Final = (f"{openapi.FILES_PATH}/", f"{OIP_PREFIX}/repository/")
"""The pages' files; and what the admin key guards, which see to that themselves."""

SAFE_HEADERS: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)
"""Every answer has these, where it has not its own: no browser runs, frames or keeps one."""

# Whoever names gzip, and not with a weight of 0: RFC 9110, section 12.5.3.
_WANTS_GZIP: Final = re.compile(r"(^|,)\s*gzip\s*(,|$|;(?!\s*q=0(\.0*)?\s*(,|$)))")
GZIP_BYTES: Final = 1024
"""A shorter answer is one packet as it is."""
_INLINE_GZIP_BYTES: Final = 16 * 1024  # above, on a thread: the event loop has others to serve
_GZIP_LEVEL: Final = 4  # bench/LOG.md, "compressed JSON"
NOT_COMPRESSED: Final = (
    *("image/*", "text/*", "application/x-npy", "application/octet-stream"),
    "application/openmetrics-text",
)
"""All that is no JSON: images are compressed already, and browsers keep the pages' files."""

# How long, and for how many bytes, a refused upload is read on and thrown away after its answer
# was sent. Closing at once would reset the connection, and a caller that still writes might
# never see the answer.
LINGER_S: Final = 1.0
LINGER_BYTES: Final = 32 * 1024 * 1024
# A body announced as no longer than this is waited for, and the connection kept: under load a new
# connection for every refusal would cost more than the refusal.
KEPT_BYTES: Final = 1024 * 1024
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"})
_SHOWN_CHARS: Final = 256
_TOO_SLOW: Final = 408  # whose body will not come in time now, either


def is_open(path: str) -> bool:
    """Says whether `path`, as it is routed, unescaped, needs no API key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def call_of(scope: Scope) -> Call:
    """Returns the request's call, which the middleware put there."""
    call: Call = scope["fcn_call"]
    return call


def headers_of(scope: Scope) -> dict[str, str]:
    """Returns the first header of each name, by lower-case name, as the middleware read them."""
    headers: dict[str, str] = scope["fcn_headers"]
    return headers


def _described(scope: Scope, method: str) -> Attributes:
    """Lists what HTTP knows. Source: OpenTelemetry, semantic conventions for HTTP servers."""
    found = {
        "http.request.method": method if method in _METHODS else "_OTHER",
        "url.scheme": scope.get("scheme", "http"),
        "url.path": scope["path"][:_SHOWN_CHARS],
        "network.protocol.version": scope["http_version"],
    }
    route = getattr(scope.get("route"), "path", "") or scope.get("fcn_route", "")
    return {**found, "http.route": route} if route else found


class RequestMiddleware:
    """Wraps the application; see the module docstring."""

    def __init__(
        self, app: ASGIApp, calls: Calls, *, is_open: Callable[[str], bool] = is_open
    ) -> None:
        """is_open: whether a path needs no API key."""
        self._app = app
        self._calls = calls
        self._is_open = is_open
        self._gzip = GZipMiddleware(
            app,
            GZIP_BYTES,
            _GZIP_LEVEL,
            _INLINE_GZIP_BYTES,
            exclude_content_types=NOT_COMPRESSED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _first_headers(scope)
        method = scope["method"]
        head = method == "HEAD"
        if head:  # answered as GET, less the body: RFC 9110, section 9.3.2
            scope = {**scope, "method": "GET"}
        scope["fcn_headers"] = headers
        address, _ = scope["client"] or ("", 0)
        _, port = scope.get("server") or ("", None)
        call = self._calls.begin(
            "rest",
            "other",
            headers.get(HEADER),
            address=address,
            port=port,
            carrier=headers,
            describe=partial(_described, scope, method),
        )
        scope["fcn_call"] = call
        wants_gzip = _WANTS_GZIP.search(headers.get("accept-encoding", ""))
        app = self._gzip if wants_gzip else self._app
        flow = _Flow(receive, send, call, headers, head=head)
        try:
            with call:
                if not self._is_open(scope["path"]):
                    call.authenticate(headers.get("authorization"), headers.get("x-api-key"))
                await app(scope, flow.receive, flow.send)
        except BaseException as error:
            if call.outcome is None or flow.started:
                raise
            let_go(error)
            response = error_response(call.outcome, scope["path"])
            await response(scope, flow.receive, flow.send)


def under_prefix(app: ASGIApp, prefix: str) -> ASGIApp:
    """Answers below the prefix, too, for a proxy that does not take it off."""

    async def rest(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(f"{prefix}/"):
            scope = {**scope, "path": scope["path"][len(prefix) :]}
        await app(scope, receive, send)

    return rest


def _first_headers(scope: Scope) -> dict[str, str]:
    """Returns the first header of each name, by lower-case name."""
    return {name.decode("latin-1"): v.decode("latin-1") for name, v in reversed(scope["headers"])}


class _Flow:
    """Watches the two ASGI channels of one request."""

    def __init__(
        self, receive: Receive, send: Send, call: Call, headers: dict[str, str], *, head: bool
    ) -> None:
        self._receive = receive
        self._send = send
        self._call = call
        self._head = head
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
        if self._head and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        if message["type"] == "http.response.start":
            self.started = True
            status = message["status"]
            self._call.record.code = str(status)
            headers = MutableHeaders(scope=message)
            headers[HEADER] = self._call.id
            for name, value in SAFE_HEADERS:
                headers.setdefault(name, value)
            for name, value in self._call.limit_headers():
                headers[name] = value
            if self._call.record.timings is not None:
                headers["Server-Timing"] = _server_timing(self._call.record.timings)
            if self._unread and (self._closes or status == _TOO_SLOW):
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


def _server_timing(timings: Timings) -> str:
    """Prints the stages in milliseconds. Source: W3C Server Timing."""
    return (
        f"decode;dur={1000 * timings.decode_s:.2f}, queue;dur={1000 * timings.queue_s:.2f}, "
        f"infer;dur={1000 * timings.infer_s:.2f}, render;dur={1000 * timings.render_s:.2f}"
    )


async def unless_disconnected(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Runs `work`, and cancels it when the caller hangs up. The request's body must be read.

    `work` runs in this task, not in one of its own, which would cost every request for the sake of
    the few whose caller leaves.

    Raises: Cancelled, or what `work` raises.
    """
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("unless_disconnected is called in a task")
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        # Unless somebody else wants this task to end, too.
        if left and task.uncancel() == 0:
            raise Cancelled() from None
        raise
    finally:
        watching.cancel()
