"""`POST /segment`: one plain ASGI endpoint, for a framework's request and response objects would
cost more than the rest of the way (bench/LOG.md, "the connection")."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.call import Call, Calls
from service.api.http.body import AS_IT_IS, read_image
from service.api.http.middleware import (
    RequestMiddleware,
    call_of,
    headers_of,
    unless_disconnected,
)
from service.api.http.openapi import SEGMENT_PATH as PATH
from service.api.http.parameters import segment_options
from service.api.uploads import Received, Uploads, chunks, read_raw
from service.core.segmenter import Segmenter
from service.core.types import SegmentOptions, SegmentReply
from service.errors import ServiceError

_CACHED_CHARS: Final = 256
"""A longer query is parsed each time, so that nobody fills the memory with them."""


class SegmentEndpoint:
    """Reads an image and its options from an HTTP request, and sends what the segmenter makes."""

    def __init__(
        self, segmenter: Segmenter, uploads: Uploads, *, max_image_bytes: int, deadline_s: float
    ) -> None:
        self._segmenter = segmenter
        self._uploads = uploads
        self._max_image_bytes = max_image_bytes
        self._deadline_s = deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises: ServiceError, which the middleware answers."""
        call, headers = call_of(scope), headers_of(scope)
        call.record.method, scope["fcn_route"] = "Segment", PATH
        # Parameters first: a typing mistake should not cost an upload. And whoever is to be turned
        # away should know it before, too.
        options = self._options(call, scope["query_string"], headers.get("accept"))
        self._segmenter.check(options, call)
        with self._uploads.begin() as received:
            image = await self._uploads.in_time(self._read(headers, receive, received))
        call.uploaded()
        reply = await unless_disconnected(self._segmenter.segment(image, options, call), receive)
        call.answered(reply)
        await send({"type": "http.response.start", "status": 200, "headers": _reply_headers(reply)})
        await send({"type": "http.response.body", "body": reply.body})

    def _read(
        self, headers: Mapping[str, str], receive: Receive, received: Received
    ) -> Coroutine[Any, Any, bytes]:
        """Raises: as `read_image`, Cancelled, Overloaded."""
        stream, max_bytes = chunks(receive, received), self._max_image_bytes
        kind, encoding = headers.get("content-type"), headers.get("content-encoding")
        length = headers.get("content-length")
        if kind in AS_IT_IS and encoding is None:
            return read_raw(stream, max_bytes, length)
        return read_image(stream, kind, encoding, length, max_bytes)

    def _options(self, call: Call, query: bytes, accept: str | None) -> SegmentOptions:
        """Raises: InvalidParameter."""
        parse = _parse_once if len(query) + len(accept or "") <= _CACHED_CHARS else _parse
        try:
            options = parse(query, accept, self._deadline_s)
        except ServiceError:
            call.asks_for(dict(_words(query)).get("model"))
            raise
        call.asks_for(options.model)
        return options


def segment_first(app: ASGIApp, segment: SegmentEndpoint, calls: Calls) -> ASGIApp:
    """Takes `POST /segment` past FastAPI's layers and router: they took a tenth of the event loop's
    time for an image (bench/LOG.md, "the rebuilt server").

    The endpoint has the middleware of all other requests around it.
    """
    endpoint = RequestMiddleware(segment, calls)

    async def rest(scope: Scope, receive: Receive, send: Send) -> None:
        wanted = scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST"
        await (endpoint if wanted else app)(scope, receive, send)

    return rest


def _reply_headers(reply: SegmentReply) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-length", b"%d" % len(reply.body)),
        (b"content-type", reply.media_type.encode()),
        (b"x-model", reply.model.encode("latin-1")),
        (b"x-model-version", reply.version.encode("latin-1")),
        (b"x-network-size", b"%dx%d" % reply.network_size),
    ]


def _words(query: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)


def _parse(query: bytes, accept: str | None, deadline_s: float) -> SegmentOptions:
    """Raises: InvalidParameter."""
    return segment_options(_words(query), accept, deadline_s)


# Callers ask the same thing again and again.
_parse_once = lru_cache(maxsize=256)(_parse)
