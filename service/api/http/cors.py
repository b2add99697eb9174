"""Lets pages of other origins ask this server, where FCN_CORS_ORIGINS names them.

Starlette's middleware knows the protocol. Around it, a preflight is a call like any other request,
but needs no key, for browsers send none with it. Source: Fetch Standard, section "CORS protocol".
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.call import HEADER, Calls
from service.api.http.middleware import RequestMiddleware, call_of
from service.api.oip.json_codec import LENGTH_HEADER
from service.errors import NotAllowed, quoted

METHODS: Final = ("GET", "HEAD", "POST")
ACCEPTED: Final = ("Authorization", "X-API-Key", HEADER, LENGTH_HEADER, "traceparent", "tracestate")
"""Headers that a page may send, besides those that browsers send unasked; Content-Type is one."""
EXPOSED: Final = (
    *(HEADER, "X-Model", "X-Model-Version", "X-Network-Size", "Server-Timing", LENGTH_HEADER),
    *("Retry-After", "RateLimit-Policy", "RateLimit", "WWW-Authenticate"),
)
"""Headers of the answer that a page may read."""
_PRIVATE: Final = "access-control-request-private-network"
KEPT_S: Final = 600
"""For so long a browser need not ask again; none keeps it for more than two hours."""


def with_cors(app: ASGIApp, calls: Calls, origins: Sequence[str]) -> ASGIApp:
    """Wraps all of REST, errors too, for a page must be able to read those.

    origins: as browsers write them; "*" for all.
    """
    cors = CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=METHODS,
        allow_headers=ACCEPTED,
        expose_headers=EXPOSED,
        max_age=KEPT_S,
        # A page of the internet may ask a server inside a network only where it was named.
        allow_private_network="*" not in origins,
    )

    async def preflight(scope: Scope, receive: Receive, send: Send) -> None:
        record = call_of(scope).record
        record.method, record.probe = "Preflight", True
        headers = Headers(scope=scope)
        response = cors.preflight_response(headers)
        if response.status_code != HTTPStatus.OK:
            raise NotAllowed(_reason(cors, headers))
        await response(scope, receive, send)

    preflights = RequestMiddleware(preflight, calls, is_open=lambda path: True)

    async def rest(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and _is_preflight(scope):
            await preflights(scope, receive, send)
        else:
            await cors(scope, receive, send)

    return rest


def _is_preflight(scope: Scope) -> bool:
    names = {name for name, _ in scope["headers"]}
    return {b"origin", b"access-control-request-method"} <= names


def _reason(cors: CORSMiddleware, headers: Headers) -> str:
    """Says why the preflight is refused, and what to do."""
    origin = headers["origin"]
    if not cors.is_allowed_origin(origin):
        return f"pages of {quoted(origin)} may not ask this server: name it in FCN_CORS_ORIGINS"
    if _PRIVATE in headers and not cors.allow_private_network:
        return (
            "pages of the internet may not ask a server inside a network while FCN_CORS_ORIGINS is "
            "*: name their origins there"
        )
    asked = headers.get("access-control-request-headers", "")
    return (
        f"pages may send {', '.join(METHODS)} with the headers {', '.join(cors.allow_headers)}; "
        f"this one asks for {quoted(headers['access-control-request-method'])} with "
        f"{quoted(asked)}"
    )
