"""REST of the Open Inference Protocol, version 2: everything under /v2.

Its errors are `{"error": "..."}`, as its clients expect: see `service.api.http.problem`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from service.api.http.middleware import call_of, unless_disconnected
from service.api.http.problem import OIP_PREFIX
from service.api.keys import ADMIN
from service.api.oip import json_codec
from service.api.oip.infer import Inference
from service.api.oip.operations import Document, Operations
from service.api.oip.tensors import InferRequest, OutputTensor
from service.api.uploads import INLINE_BYTES, Uploads, chunks, read_raw
from service.config import ApiConfig
from service.core.segmenter import Segmenter
from service.core.types import SegmentOptions, SegmentReply
from service.errors import (
    ImageTooLarge,
    InvalidParameter,
    ModelNotReady,
    UnsupportedImageFormat,
    quoted,
)

# A short text is parsed sooner than a thread is woken.
_INLINE_JSON_BYTES: Final = 16 * 1024
_MAX_ADMIN_BODY_BYTES: Final = 64 * 1024

T = TypeVar("T")
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
        operations: Operations,
    ) -> None:
        """uploads: bodies count until they are answered: the images of a request are parts of one
        body, which goes only when the last is done."""
        self._segmenter = segmenter
        self._deadline_s = config.deadline_s
        self._max_json_bytes = config.max_image_bytes
        self._max_bytes = config.max_tensor_bytes
        self._uploads = uploads
        self._inference = inference
        self._operations = operations

    def add_to(self, app: FastAPI) -> None:
        def route(
            path: str, operation: str, endpoint: Endpoint, method: str = "GET", probe: bool = False
        ) -> None:
            async def called(request: Request) -> Response:
                record = call_of(request.scope).record
                record.method, record.probe = operation, probe
                request.scope["fcn_route"] = OIP_PREFIX + path
                return await endpoint(request, **request.path_params)

            app.add_route(OIP_PREFIX + path, called, methods=[method])

        o = self._operations
        route("", "ServerMetadata", _json(o.server_metadata))
        route("/health/live", "ServerLive", _json(o.server_live), probe=True)
        route("/health/ready", "ServerReady", _json(o.server_ready), probe=True)
        route("/models/stats", "ModelStatistics", _json(o.model_statistics))
        for model in ("/models/{name}", "/models/{name}/versions/{version}"):
            route(model, "ModelMetadata", _json(o.model_metadata))
            route(model + "/ready", "ModelReady", _json(o.model_ready), probe=True)
            route(model + "/config", "ModelConfig", _json(o.model_config))
            route(model + "/stats", "ModelStatistics", _json(o.model_statistics))
            route(model + "/infer", "ModelInfer", self.infer, "POST")
        route("/repository/index", "RepositoryIndex", self.index, "POST")
        repository = "/repository/models/{name}"
        route(repository + "/load", "RepositoryModelLoad", self.load, "POST")
        route(repository + "/unload", "RepositoryModelUnload", self.unload, "POST")

    async def infer(self, request: Request, name: str, version: str = "") -> Response:
        call = call_of(request.scope)
        call.asks_for(name)
        # Whoever is to be turned away should know it before an upload.
        options = SegmentOptions(name, version, deadline_s=self._deadline_s)
        self._segmenter.check(options, call)
        self._check_headers(request)
        with self._uploads.begin() as received:
            body = await self._uploads.in_time(
                read_raw(chunks(request.receive, received), self._max_bytes)
            )
            call.uploaded()
            read = partial(self._read, body, request.headers.get(json_codec.LENGTH_HEADER))
            answer = self._inference.answer(call, name, version, read, _response, received)
            return await unless_disconnected(answer, request.receive)

    async def _read(self, body: bytes, length: str | None) -> InferRequest:
        """Raises: InvalidParameter, ImageTooLarge."""
        read = partial(json_codec.read, body, length, max_json_bytes=self._max_json_bytes)
        json_bytes = json_codec.json_length(length, len(body))
        if json_bytes is None:
            json_bytes = len(body)
        if json_bytes <= _INLINE_JSON_BYTES and len(body) <= INLINE_BYTES:
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
        if claimed.isdigit() and int(claimed[:18]) > self._max_bytes:
            raise ImageTooLarge(
                f"the request is larger than {self._max_bytes} bytes: send fewer "
                "images in one, or image files as BYTES"
            )

    async def index(self, request: Request) -> Response:
        document = await self._admitted(request)
        ready = _member(document, "ready", bool, "true or false")
        return JSONResponse(self._operations.repository_index(bool(ready)))

    async def load(self, request: Request, name: str) -> Response:
        document = await self._admitted(request)
        parameters = _member(document, "parameters", dict, "an object")
        await self._operations.load(name, parameters)
        return JSONResponse({})

    async def unload(self, request: Request, name: str) -> Response:
        _member(await self._admitted(request), "parameters", dict, "an object")
        await self._operations.unload(name)
        return JSONResponse({})

    async def _admitted(self, request: Request) -> dict[str, Any]:
        """Reads the body of an operator's request, {} for none.

        Raises: NotAllowed, NotAuthenticated, LimitExceeded, InvalidParameter, ImageTooLarge.
        """
        headers = request.headers
        call = call_of(request.scope)
        call.authenticate(headers.get("authorization"), headers.get("x-api-key"), ADMIN)
        with self._uploads.begin() as received:
            body = await self._uploads.in_time(
                read_raw(chunks(request.receive, received), _MAX_ADMIN_BODY_BYTES)
            )
        try:
            document = json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError) as error:
            raise InvalidParameter("the body is not JSON: send an object, or nothing") from error
        if not isinstance(document, dict):
            raise InvalidParameter("the body is no JSON object: send one, or nothing")
        return document


def _member(document: Document, name: str, kind: type[T], words: str) -> T | None:
    """Returns a member of an operator's request; None where it is left out or null.

    words: the kind, in words. Raises: InvalidParameter.
    """
    value = document.get(name)
    if value is None or isinstance(value, kind):
        return value
    raise InvalidParameter(f"{name} is to be {words}, or left out")


def _json(operation: Callable[..., Document]) -> Endpoint:
    async def endpoint(request: Request, **path_params: str) -> Response:
        document = operation(**path_params)
        if document.get("ready", True):
            return JSONResponse(document)
        what = f"model {document['name']} is" if "name" in document else "the server is"
        raise ModelNotReady(f"{what} not ready: models are loading, or the server is draining")

    return endpoint


def _response(
    request: InferRequest, first: SegmentReply, tensors: Sequence[OutputTensor]
) -> Response:
    content, headers = json_codec.write(request, first, tensors)
    return Response(content, headers=headers)
