"""`POST /segment` without the transport: what a request asks, and what it is answered.

REST has two ways to it. A picture in an ordinary request goes straight from the connection to `ask`
(`service.api.http.direct`); whatever else HTTP allows goes through FastAPI
(`service.api.http.routes`). What they say is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl

from starlette.responses import Response

from service.api.http.parameters import segment_request
from service.api.http.problem import service_problem
from service.api.http.upload import picture_in
from service.api.keys import Keys, offered
from service.api.models import known_name
from service.api.status import counts_as_latency, status_of
from service.core.segmenter import Segmenter, SegmentOptions, SegmentReply, Timings
from service.errors import ServiceError
from service.telemetry import RequestRecord

PATH: Final = "/segment"

_CACHED_CHARS: Final = 256
"""A longer query is parsed each time, so that nobody fills the memory with them."""


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """max_image_bytes: cap of an upload. deadline_s: for requests that bring none.

    default_model: as configured; None when the only model is the default.
    """

    max_image_bytes: int
    deadline_s: float
    default_model: str | None = None


@dataclass(slots=True)
class Asked:
    """A request whose body may still be on its way.

    query: as sent. headers: by lower-case name. draft: what it asks, once that is known.
    """

    query: bytes
    headers: Mapping[bytes, bytes]
    record: RequestRecord
    admitted: bool = False
    draft: SegmentOptions | None = None

    def header(self, name: bytes) -> str | None:
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")


class Segmenting:
    """The endpoint."""

    def __init__(
        self, segmenter: Segmenter, options: EndpointOptions, keys: Keys | None = None
    ) -> None:
        """keys: None lets everybody in."""
        self._segmenter = segmenter
        self._options = options
        self._keys = keys

    def check(self, asked: Asked) -> None:
        """What is to be refused whatever the picture, which is worth knowing before its upload.

        Raises: ServiceError.
        """
        self._segmenter.check(self._draft(asked))

    async def answer(self, asked: Asked, body: bytes) -> SegmentReply:
        """body: all of it. Raises: ServiceError."""
        draft = self._draft(asked)
        try:
            picture = picture_in(
                body,
                asked.header(b"content-type"),
                asked.header(b"content-encoding"),
                self._options.max_image_bytes,
            )
        except ServiceError:
            self._segmenter.check(draft)  # of two errors the one that `check` would have found
            raise
        return await self.segment(asked, picture)

    async def segment(self, asked: Asked, picture: bytes) -> SegmentReply:
        """The upload is complete: from here time counts. Raises: ServiceError."""
        record = asked.record
        record.restart()
        record.timed = True
        reply = await self._segmenter.segment(picture, self._draft(asked))
        record.model, record.timings = reply.model, reply.timings
        record.height, record.width = reply.height, reply.width
        return reply

    def problem(self, error: ServiceError, asked: Asked) -> Response:
        """The answer to a request that failed."""
        record = asked.record
        record.model = self.model_of(asked)
        # Timed once the upload was complete; the caller's mistakes and refusals do not count.
        record.timed = record.timed and counts_as_latency(status_of(error).http)
        return service_problem(error, record)

    def model_of(self, asked: Asked) -> str:
        """For the log and the metrics; "" when it is none that serves."""
        wanted = asked.draft.model if asked.draft else dict(_words(asked.query)).get("model")
        return known_name(self._segmenter.models(), self._options.default_model, wanted)

    def _draft(self, asked: Asked) -> SegmentOptions:
        """Raises: NotAuthenticated, InvalidParameter."""
        if asked.draft is None:
            if self._keys is not None and not asked.admitted:
                keys = offered(asked.header(b"authorization"), asked.header(b"x-api-key"))
                asked.record.caller = self._keys.admit(keys).name
                asked.admitted = True
            query, accept = asked.query, asked.header(b"accept")
            parse = _parse_once if len(query) + len(accept or "") <= _CACHED_CHARS else _parse
            asked.draft = parse(query, accept, self._options.deadline_s)
        return asked.draft


def reply_headers(reply: SegmentReply) -> dict[str, str]:
    """Besides type and length."""
    return {
        "x-model": reply.model,
        "x-model-version": reply.version,
        "server-timing": server_timing(reply.timings),
    }


def server_timing(timings: Timings) -> str:
    """The stages in milliseconds. Source: W3C Server Timing."""
    return (
        f"decode;dur={1000 * timings.decode_s:.2f}, queue;dur={1000 * timings.queue_s:.2f}, "
        f"infer;dur={1000 * timings.infer_s:.2f}, render;dur={1000 * timings.render_s:.2f}"
    )


def _words(query: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)


def _parse(query: bytes, accept: str | None, deadline_s: float) -> SegmentOptions:
    """Raises: InvalidParameter."""
    return segment_request(_words(query), accept, deadline_s)


# Callers ask the same thing again and again.
_parse_once = lru_cache(maxsize=256)(_parse)
