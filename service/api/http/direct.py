"""Ordinary requests to `POST /segment`, from the connection to the reply without a layer between.

An ASGI server's channels, a framework's request, response and middleware, and the tasks that watch
for a caller who leaves, are most of what the event loop does for a request, and it does so with
cold caches, behind an inference: see bench/LOG.md, "the connection". What is unusual, a long body
or one of unknown length, `Expect`, a second request before the answer to the first, and every
other address, is left to uvicorn and FastAPI. The answers are the same.

uvicorn's protocol is the base: connections, keep-alive and shutdown are its, and so is the parser.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar, Final

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.http.middleware import KEPT_BYTES, LINGER_S, internal_problem
from service.api.http.segment import PATH, Asked, Segmenting, reply_headers
from service.api.http.upload import Upload, Uploads
from service.api.request_id import HEADER, request_id
from service.api.status import CLIENT_CLOSED_REQUEST
from service.core.segmenter import SegmentReply
from service.errors import ServiceError, UploadTooSlow
from service.telemetry import RequestRecord, Telemetry

_URL: Final = PATH.encode()
_UNUSUAL: Final = (b"expect", b"transfer-encoding", b"upgrade")
_log = logging.getLogger("fcn.rest")


class DirectProtocol(HttpToolsProtocol):
    """One connection. `protocol_class` makes a class of it that knows its endpoint."""

    segmenting: ClassVar[Segmenting]
    uploads: ClassVar[Uploads]
    telemetry: ClassVar[Telemetry]

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if isinstance(self.cycle, _Cycle):
            self.cycle.paused()

    def on_headers_complete(self) -> None:
        url, _, query = self.url.partition(b"?")
        if url == _URL and (headers := self._ordinary()) is not None:
            self.cycle = _Cycle(self, headers, query)  # type: ignore[assignment]
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if isinstance(self.cycle, _Cycle):
            self.cycle.received(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if isinstance(self.cycle, _Cycle):
            self.cycle.complete()
        else:
            super().on_message_complete()

    def await_request(self) -> None:
        """The connection is kept for a while, though nothing comes."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _ordinary(self) -> dict[bytes, bytes] | None:
        """The first header of each name, by lower-case name; None for what is left to uvicorn."""
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        if self.parser.get_method() != b"POST" or self.parser.get_http_version() != "1.1":
            return None
        headers = dict(reversed(self.headers))
        length = headers.get(b"content-length", b"")
        # The parser has seen to it that they are digits, and that there are not two.
        if not length or len(length) > len(str(KEPT_BYTES)) or int(length) > KEPT_BYTES:
            return None
        return None if any(name in headers for name in _UNUSUAL) else headers


def protocol_class(
    segmenting: Segmenting, uploads: Uploads, telemetry: Telemetry
) -> type[DirectProtocol]:
    """For uvicorn's `http` setting."""
    shared = {"segmenting": segmenting, "uploads": uploads, "telemetry": telemetry}
    return type("_DirectProtocol", (DirectProtocol,), shared)


class _Cycle:
    """One request and its answer, in place of uvicorn's class of that name.

    response_complete, disconnected, keep_alive, message_event: what uvicorn's protocol reads of it
    and sets; the event is told that the caller has left.
    """

    def __init__(
        self, connection: DirectProtocol, headers: dict[bytes, bytes], query: bytes
    ) -> None:
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = connection.parser.should_keep_alive()
        self.message_event = self
        self._connection = connection
        offered = headers.get(HEADER.encode())
        record = RequestRecord(
            "rest", "Segment", request_id(None if offered is None else offered.decode("latin-1"))
        )
        self._asked = Asked(query, headers, record)
        self._chunks: list[bytes] = []
        self._whole = False
        self._upload: Upload | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None

    def received(self, chunk: bytes) -> None:
        """Of the body."""
        if self.response_complete:
            return
        self._chunks.append(chunk)
        if self._upload is not None:
            try:
                self._upload.received(len(chunk))
            except ServiceError as error:
                self._refuse(error)

    def paused(self) -> None:
        """All that came was seen, and if the body is not over, others may go first."""
        if self._whole or self._upload is not None or self.response_complete:
            return
        uploads = self._connection.uploads
        try:
            self._connection.segmenting.check(self._asked)
            self._upload = uploads.begin()
            self._upload.received(sum(map(len, self._chunks)))
        except ServiceError as error:
            self._refuse(error)
        else:
            self._timer = self._connection.loop.call_later(uploads.timeout_s, self._too_slow)

    def complete(self) -> None:
        """The body is."""
        self._whole = True
        self._stop_reading()
        if not self.response_complete:
            # uvicorn keeps the task, and ends it at a shutdown that takes too long.
            self._connection._start_asgi_task(self, self._connection.app)  # type: ignore[arg-type]
        elif self.keep_alive:  # that was the rest of a body that was refused
            self._connection.await_request()
        else:
            self._connection.transport.close()

    def set(self) -> None:
        """The caller has left, if `disconnected` says so."""
        if not self.disconnected or self.response_complete:
            return
        if self._task is not None:
            self._task.cancel()
        elif not self._whole:
            self._stop_reading()
            self._left()

    async def run_asgi(self, app: object) -> None:
        """The task, by the name that uvicorn calls it."""
        if self.disconnected:
            self._left()
            return
        self._task = asyncio.current_task()
        asked, connection = self._asked, self._connection
        try:
            body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            answer: SegmentReply | Response = await connection.segmenting.answer(asked, body)
            if connection.flow.write_paused:
                await connection.flow.drain()
        except ServiceError as error:
            answer = connection.segmenting.problem(error, asked)
        except asyncio.CancelledError:
            self._left()
            if not self.disconnected:
                connection.transport.close()
                raise
            return
        except Exception:
            _log.exception("request %s failed", asked.record.request_id)
            asked.record.model = connection.segmenting.model_of(asked)
            answer = internal_problem(asked.record)
        self._send(answer)

    def _refuse(self, error: ServiceError) -> None:
        """While the body is on its way: it is read for a moment more. Closing at once would reset
        the connection, and a caller that still writes might never see the answer."""
        self._stop_reading()
        self._send(self._connection.segmenting.problem(error, self._asked))
        self._timer = self._connection.loop.call_later(LINGER_S, self._connection.transport.close)

    def _too_slow(self) -> None:
        self.keep_alive = False
        self._refuse(UploadTooSlow(self._connection.uploads.timeout_s))

    def _stop_reading(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._upload is not None:
            self._upload.end()
            self._upload = None

    def _send(self, answer: SegmentReply | Response) -> None:
        connection, record = self._connection, self._asked.record
        self.response_complete = True
        if isinstance(answer, Response):
            status, body = answer.status_code, bytes(answer.body)
            fields = b"".join([b"%b: %b\r\n" % field for field in answer.raw_headers])
        else:
            status, body = 200, answer.body
            lines = [f"content-length: {len(body)}\r\ncontent-type: {answer.media_type}\r\n"]
            lines += [f"{name}: {value}\r\n" for name, value in reply_headers(answer).items()]
            fields = "".join(lines).encode("latin-1")
        record.code = str(status)
        if not connection.transport.is_closing():
            date = b"".join(
                [b"%b: %b\r\n" % field for field in connection.server_state.default_headers]
            )
            end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
            own = f"{HEADER}: {record.request_id}\r\n".encode("latin-1")
            # In one go: written apart, the caller would be woken twice.
            connection.transport.writelines(
                [b"".join((STATUS_LINE[status], date, fields, own, end)), body]
            )
            if not self.keep_alive and self._whole:
                connection.transport.close()
        connection.on_response_complete()
        connection.telemetry.finished(record)

    def _left(self) -> None:
        """Nobody is there to be answered."""
        record = self._asked.record
        self.response_complete = True
        record.model = self._connection.segmenting.model_of(self._asked)
        record.code = str(CLIENT_CLOSED_REQUEST)
        self._connection.telemetry.finished(record)
