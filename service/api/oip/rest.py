"""REST of the Open Inference Protocol, version 2: everything under /v2.

Its errors are `{"error": "..."}`, as its clients expect, with the status of `service.api.status`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from service.api.http.problem import record_of
from service.api.http.routes import unless_disconnected
from service.api.http.segment import server_timing
from service.api.http.upload import Uploads, read_raw
from service.api.oip import json_codec as oip_json
from service.api.oip.admin import Admin
from service.api.oip.error import OIP_PREFIX, oip_error, oip_service_error
from service.api.oip.infer import segment_all
from service.api.oip.models import SERVER, Statistics, config, metadata, version_named
from service.api.oip.parameters import segment_request
from service.api.oip.tensors import answers
from service.api.status import counts_as_latency, status_of
from service.core.segmenter import ModelState, Segmenter, SegmentOptions
from service.errors import (
    ImageTooLarge,
    InvalidParameter,
    ModelNotReady,
    ServiceError,
    UnsupportedImageFormat,
    quoted,
)
from service.telemetry import Telemetry

# A short text is parsed sooner than a thread is woken.
_INLINE_BYTES: Final = 16 * 1024
_MAX_ADMIN_BODY_BYTES: Final = 64 * 1024

_log = logging.getLogger("fcn.rest")
Endpoint = Callable[..., Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class OipOptions:
    """max_json_bytes: of the JSON of a request. max_body_bytes: of that and the tensors behind it,
    or of a gRPC message. max_pixels: of all pictures of one request. deadline_s: for requests that
    bring none."""

    max_json_bytes: int
    max_body_bytes: int
    max_pixels: int
    deadline_s: float


def _guarded(method: str, *, probe: bool = False) -> Callable[[Endpoint], Endpoint]:
    """Names the operation, and answers errors in the protocol's shape."""

    def decorate(endpoint: Endpoint) -> Endpoint:
        @wraps(endpoint)
        async def guarded(self: OipRest, request: Request, **path: str) -> Response:
            record = record_of(request)
            record.method, record.probe = method, probe
            try:
                return await endpoint(self, request, **path)
            except ServiceError as error:
                record.timed = record.timed and counts_as_latency(status_of(error).http)
                return oip_service_error(error, record)
            except ClientDisconnect:
                raise
            except Exception:
                _log.exception("request %s failed", record.request_id)
                message = "the server failed: try again, and report the request id if it recurs"
                return oip_error(500, message, record)

        return guarded

    return decorate


class OipRest:
    """The endpoints, with what they share."""

    def __init__(
        self,
        segmenter: Segmenter,
        telemetry: Telemetry,
        options: OipOptions,
        uploads: Uploads,
        statistics: Statistics,
        admin: Admin,
        ready: Callable[[], bool],
    ) -> None:
        """uploads: bodies count until they are answered: the pictures of a request are parts of
        one body, which goes only when the last is done."""
        self._segmenter = segmenter
        self._telemetry = telemetry
        self._options = options
        self._uploads = uploads
        self._statistics = statistics
        self._admin = admin
        self._ready = ready

    def add_to(self, app: FastAPI) -> None:
        def route(path: str, endpoint: Endpoint, method: str = "GET") -> None:
            app.add_route(OIP_PREFIX + path, _from_path(endpoint), methods=[method])

        route("", self.server)
        route("/health/live", self.live)
        route("/health/ready", self.ready)
        route("/models/stats", self.statistics)
        for model in ("/models/{model}", "/models/{model}/versions/{version}"):
            route(model, self.model)
            route(model + "/ready", self.model_ready)
            route(model + "/config", self.model_config)
            route(model + "/stats", self.statistics)
            route(model + "/infer", self.infer, "POST")
        route("/repository/index", self.index, "POST")
        route("/repository/models/{model}/load", self.load, "POST")
        route("/repository/models/{model}/unload", self.unload, "POST")

    @_guarded("ServerMetadata")
    async def server(self, request: Request) -> Response:
        return JSONResponse(SERVER)

    @_guarded("ServerLive", probe=True)
    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    @_guarded("ServerReady", probe=True)
    async def ready(self, request: Request) -> Response:
        if not self._ready():
            raise ModelNotReady("not ready: the models are loading, or the server is draining")
        # The protocol's text says `live` here, and its clients read `ready`.
        return JSONResponse({"live": True, "ready": True})

    @_guarded("ModelMetadata")
    async def model(self, request: Request, model: str, version: str = "") -> Response:
        return JSONResponse(metadata(*version_named(self._segmenter.models(), model, version)))

    @_guarded("ModelReady", probe=True)
    async def model_ready(self, request: Request, model: str, version: str = "") -> Response:
        found, status = version_named(self._segmenter.models(), model, version)
        if status.state is not ModelState.READY or not self._ready():
            raise ModelNotReady(f"model {found.name} version {status.version} is not ready")
        return JSONResponse({"name": found.name, "ready": True})

    @_guarded("ModelConfig")
    async def model_config(self, request: Request, model: str, version: str = "") -> Response:
        return JSONResponse(config(*version_named(self._segmenter.models(), model, version)))

    @_guarded("ModelStatistics")
    async def statistics(self, request: Request, model: str = "", version: str = "") -> Response:
        return JSONResponse(self._statistics.to_json(self._segmenter.models(), model, version))

    @_guarded("ModelInfer")
    async def infer(self, request: Request, model: str, version: str = "") -> Response:
        record, options = record_of(request), self._options
        found, status = version_named(self._segmenter.models(), model, version)
        record.model = found.name
        # Whoever is to be turned away should know it before an upload.
        self._segmenter.check(SegmentOptions(model, version, deadline_s=options.deadline_s))
        self._check_headers(request)
        with self._uploads.begin() as upload:
            chunks = upload.counted(request.stream())
            body = await upload.in_time(read_raw(chunks, options.max_body_bytes))
            record.restart()
            record.timed = True
            began = time.perf_counter()
            try:
                answer = await unless_disconnected(
                    self._answer(request, model, version, body), request.receive
                )
            except BaseException:
                seconds = time.perf_counter() - began
                self._statistics.failed(found.name, status.version, seconds)
                raise
        return answer

    @_guarded("RepositoryIndex")
    async def index(self, request: Request) -> Response:
        only_ready = (await self._admitted(request)).get("ready", False) is True
        return JSONResponse(self._admin.index(only_ready=only_ready))

    @_guarded("RepositoryModelLoad")
    async def load(self, request: Request, model: str) -> Response:
        document = await self._admitted(request)
        await self._admin.load(model, document.get("parameters"))
        return JSONResponse({})

    @_guarded("RepositoryModelUnload")
    async def unload(self, request: Request, model: str) -> Response:
        await self._admitted(request)
        await self._admin.unload(model)
        return JSONResponse({})

    async def _answer(self, request: Request, model: str, version: str, body: bytes) -> Response:
        began = time.perf_counter()
        length = request.headers.get(oip_json.LENGTH_HEADER)
        small = len(body) <= _INLINE_BYTES or length is not None
        limit = self._options.max_json_bytes
        if small:
            asked = oip_json.read(body, length, max_json_bytes=limit)
        else:
            asked = await asyncio.to_thread(oip_json.read, body, length, max_json_bytes=limit)
        draft = segment_request(
            model, version, asked.outputs, asked.parameters, self._options.deadline_s
        )
        replies = await segment_all(
            self._segmenter,
            asked.pictures,
            draft,
            asked.outputs,
            max_pixels=self._options.max_pixels,
            as_numbers=asked.scores_as_numbers,
        )
        first = replies[0]
        content, headers = await asyncio.to_thread(
            lambda: oip_json.write(
                asked, first.model, first.version, answers(asked.outputs, replies)
            )
        )
        self._statistics.answered(replies, time.perf_counter() - began)
        record = record_of(request)
        record.timings, record.height, record.width = first.timings, first.height, first.width
        headers["Server-Timing"] = server_timing(first.timings)
        return Response(content, headers=headers)

    def _check_headers(self, request: Request) -> None:
        """Raises: UnsupportedImageFormat, ImageTooLarge."""
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise UnsupportedImageFormat(
                f"Content-Encoding {quoted(encoding)} is not read: send the request as it is; "
                "picture files, as BYTES, are small"
            )
        claimed = request.headers.get("content-length", "0")
        # A claim is no proof of being small enough, but enough to be refused before the upload.
        if claimed.isdigit() and int(claimed[:18]) > self._options.max_body_bytes:
            raise ImageTooLarge(
                f"the request is larger than {self._options.max_body_bytes} bytes: send fewer "
                "pictures in one, or picture files as BYTES"
            )

    async def _admitted(self, request: Request) -> dict[str, Any]:
        """The body of a request to the repository, or {} for none.

        Raises: NotAllowed, NotAuthenticated, InvalidParameter, ImageTooLarge.
        """
        self._admin.check(request.headers.get("authorization"))
        with self._uploads.begin() as upload:
            body = await upload.in_time(read_raw(request.stream(), _MAX_ADMIN_BODY_BYTES))
        try:
            document = json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InvalidParameter("the body is not JSON: send an object, or nothing") from error
        if not isinstance(document, dict):
            raise InvalidParameter("the body is no JSON object: send one, or nothing")
        return document


def _from_path(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def called(request: Request) -> Response:
        return await endpoint(request, **request.path_params)

    return called
