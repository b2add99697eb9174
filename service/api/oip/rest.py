"""REST of the Open Inference Protocol, version 2: everything under /v2.

Its errors are `{"error": "..."}`, as its clients expect: see `service.api.http.problem`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from service.api.http.body import chunks, read_raw
from service.api.http.middleware import call_of, unless_disconnected
from service.api.http.problem import OIP_PREFIX
from service.api.http.segment import server_timing
from service.api.oip import json_codec
from service.api.oip.admin import Admin
from service.api.oip.infer import Inference
from service.api.oip.models import SERVER, Statistics, config, metadata, version_named
from service.api.oip.tensors import InferRequest, OutputTensor
from service.api.uploads import Uploads
from service.config import ApiConfig
from service.core.segmenter import ModelState, Segmenter, SegmentOptions, SegmentReply
from service.errors import (
    ImageTooLarge,
    InvalidParameter,
    ModelNotReady,
    UnsupportedImageFormat,
    quoted,
)

# A short text is parsed sooner than a thread is woken.
_INLINE_BYTES: Final = 16 * 1024
_MAX_ADMIN_BODY_BYTES: Final = 64 * 1024

Endpoint = Callable[..., Awaitable[Response]]


class OipRest:
    """Translates HTTP requests under /v2."""

    def __init__(
        self,
        segmenter: Segmenter,
        config: ApiConfig,
        *,
        uploads: Uploads,
        inference: Inference,
        statistics: Statistics,
        admin: Admin,
        ready: Callable[[], bool],
    ) -> None:
        """uploads: bodies count until they are answered: the images of a request are parts of one
        body, which goes only when the last is done."""
        self._segmenter = segmenter
        self._config = config
        self._uploads = uploads
        self._inference = inference
        self._statistics = statistics
        self._admin = admin
        self._ready = ready

    def add_to(self, app: FastAPI) -> None:
        def route(
            path: str, operation: str, endpoint: Endpoint, method: str = "GET", probe: bool = False
        ) -> None:
            async def called(request: Request) -> Response:
                record = call_of(request.scope).record
                record.method, record.probe = operation, probe
                return await endpoint(request, **request.path_params)

            app.add_route(OIP_PREFIX + path, called, methods=[method])

        route("", "ServerMetadata", self.server)
        route("/health/live", "ServerLive", self.live, probe=True)
        route("/health/ready", "ServerReady", self.ready, probe=True)
        route("/models/stats", "ModelStatistics", self.statistics)
        for model in ("/models/{model}", "/models/{model}/versions/{version}"):
            route(model, "ModelMetadata", self.model)
            route(model + "/ready", "ModelReady", self.model_ready, probe=True)
            route(model + "/config", "ModelConfig", self.model_config)
            route(model + "/stats", "ModelStatistics", self.statistics)
            route(model + "/infer", "ModelInfer", self.infer, "POST")
        route("/repository/index", "RepositoryIndex", self.index, "POST")
        for operation, endpoint in (("Load", self.load), ("Unload", self.unload)):
            path = f"/repository/models/{{model}}/{operation.lower()}"
            route(path, f"RepositoryModel{operation}", endpoint, "POST")

    async def server(self, request: Request) -> Response:
        return JSONResponse(SERVER)

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        if not self._ready():
            raise ModelNotReady("not ready: the models are loading, or the server is draining")
        # The protocol's text says `live` here, and its clients read `ready`.
        return JSONResponse({"live": True, "ready": True})

    async def model(self, request: Request, model: str, version: str = "") -> Response:
        return JSONResponse(metadata(*version_named(self._segmenter.models(), model, version)))

    async def model_ready(self, request: Request, model: str, version: str = "") -> Response:
        found, status = version_named(self._segmenter.models(), model, version)
        if status.state is not ModelState.READY or not self._ready():
            raise ModelNotReady(f"model {found.name} version {status.version} is not ready")
        return JSONResponse({"name": found.name, "ready": True})

    async def model_config(self, request: Request, model: str, version: str = "") -> Response:
        return JSONResponse(config(*version_named(self._segmenter.models(), model, version)))

    async def statistics(self, request: Request, model: str = "", version: str = "") -> Response:
        return JSONResponse(self._statistics.to_json(self._segmenter.models(), model, version))

    async def infer(self, request: Request, model: str, version: str = "") -> Response:
        call = call_of(request.scope)
        call.asks_for(model)
        # Whoever is to be turned away should know it before an upload.
        deadline_s = self._config.deadline_s
        self._segmenter.check(SegmentOptions(model, version, deadline_s=deadline_s))
        self._check_headers(request)
        with self._uploads.begin() as upload:
            body = await upload.in_time(
                read_raw(chunks(request.receive, upload), self._config.max_tensor_bytes)
            )
            call.uploaded()
            read = partial(self._read, body, request.headers.get(json_codec.LENGTH_HEADER))
            answer = self._inference.answer(call, model, version, read, _response)
            return await unless_disconnected(answer, request.receive)

    async def _read(self, body: bytes, length: str | None) -> InferRequest:
        """Raises: InvalidParameter, ImageTooLarge."""
        read = partial(json_codec.read, body, length, max_json_bytes=self._config.max_image_bytes)
        if len(body) <= _INLINE_BYTES or length is not None:
            return read()
        return await asyncio.to_thread(read)

    def _check_headers(self, request: Request) -> None:
        """Raises: UnsupportedImageFormat, ImageTooLarge."""
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise UnsupportedImageFormat(
                f"Content-Encoding {quoted(encoding)} is not read: send the request as it is; "
                "image files, as BYTES, are small"
            )
        claimed = request.headers.get("content-length", "0")
        # A claim is no proof of being small enough, but enough to be refused before the upload.
        if claimed.isdigit() and int(claimed[:18]) > self._config.max_tensor_bytes:
            raise ImageTooLarge(
                f"the request is larger than {self._config.max_tensor_bytes} bytes: send fewer "
                "images in one, or image files as BYTES"
            )

    async def index(self, request: Request) -> Response:
        only_ready = (await self._admitted(request)).get("ready", False) is True
        return JSONResponse(self._admin.index(only_ready=only_ready))

    async def load(self, request: Request, model: str) -> Response:
        document = await self._admitted(request)
        await self._admin.load(model, document.get("parameters"))
        return JSONResponse({})

    async def unload(self, request: Request, model: str) -> Response:
        await self._admitted(request)
        await self._admin.unload(model)
        return JSONResponse({})

    async def _admitted(self, request: Request) -> dict[str, Any]:
        """Reads the body of an operator's request, {} for none.

        Raises: NotAllowed, NotAuthenticated, InvalidParameter, ImageTooLarge.
        """
        self._admin.check(request.headers.get("authorization"))
        with self._uploads.begin() as upload:
            body = await upload.in_time(
                read_raw(chunks(request.receive, upload), _MAX_ADMIN_BODY_BYTES)
            )
        try:
            document = json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InvalidParameter("the body is not JSON: send an object, or nothing") from error
        if not isinstance(document, dict):
            raise InvalidParameter("the body is no JSON object: send one, or nothing")
        return document


def _response(
    request: InferRequest, first: SegmentReply, tensors: Sequence[OutputTensor]
) -> Response:
    content, headers = json_codec.write(request, first.model, first.version, tensors)
    return Response(content, headers={**headers, "Server-Timing": server_timing(first.timings)})
