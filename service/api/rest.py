"""REST: `POST /segment`, the models, the probes and the metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api import openapi
from service.api.exchange import Exchange
from service.api.gate import Gate, with_keys
from service.api.keys import Keys
from service.api.listing import known_name, model_json, models_json
from service.api.oip_error import OIP_PREFIX, oip_error
from service.api.page import add_pages, page, wants_page
from service.api.parameters import segment_request
from service.api.problem import framework_problem, record_of, service_problem
from service.api.status import counts_as_latency, status_of
from service.api.upload import Uploads, read_picture
from service.core.segmenter import Output, Segmenter, Timings
from service.errors import ModelNotReady, ServiceError
from service.telemetry import Telemetry

T = TypeVar("T")

SEGMENT_PATH: Final = "/segment"


@dataclass(frozen=True, slots=True)
class RestOptions:
    """max_image_bytes: cap of an upload. deadline_s: for requests that bring none.

    latency_target_s: told to the web page.
    default_model: as configured; None when the only model is the default.
    """

    max_image_bytes: int
    deadline_s: float
    latency_target_s: float
    default_model: str | None = None


def create_app(
    segmenter: Segmenter,
    telemetry: Telemetry,
    options: RestOptions,
    uploads: Uploads,
    ready: Callable[[], bool],
    keys: Keys | None = None,
) -> FastAPI:
    """`ready` says whether new requests are wanted: models loaded and not draining. keys: None lets
    everybody in."""
    app = _App(
        title=openapi.TITLE,
        description=openapi.DESCRIPTION,
        version=openapi.VERSION,
        openapi_url=openapi.OPENAPI_PATH,
        docs_url=None,  # its own come from a CDN; see service.api.page
        redoc_url=None,
    )
    rest = _Rest(segmenter, telemetry, options, uploads, ready)
    direct: ASGIApp = _Direct(rest)
    # On both ways in. The last added is the outermost.
    if keys is not None:
        app.add_middleware(Gate, keys=keys)
        direct = Gate(direct, keys)
    app.add_middleware(Exchange, telemetry=telemetry)
    describe = app.openapi
    app.openapi = lambda: with_keys(describe(), asked=keys is not None)  # type: ignore[method-assign]
    app.add_exception_handler(ServiceError, rest.service_error)
    app.add_exception_handler(HTTPException, rest.framework_error)
    app.add_exception_handler(RequestValidationError, rest.validation_error)
    route = app.add_api_route
    # Starlette answers are returned as they are: nothing on the hot path passes pydantic.
    route(SEGMENT_PATH, rest.segment, methods=["POST"], **openapi.SEGMENT)
    route("/v1/models", rest.list_models, methods=["GET"], **openapi.LIST_MODELS)
    route("/v1/models/{model}", rest.get_model, methods=["GET"], **openapi.GET_MODEL)
    route("/livez", rest.livez, methods=["GET"], **openapi.LIVEZ)
    route("/readyz", rest.readyz, methods=["GET"], **openapi.READYZ)
    route("/metrics", rest.metrics, methods=["GET"], **openapi.METRICS)
    route("/", rest.index, methods=["GET"], include_in_schema=False)
    add_pages(app)
    app.direct = Exchange(direct, telemetry)
    return app


class _App(FastAPI):
    """FastAPI, with a way past its layers for the one address that is asked thousands of times.

    Its router, exit stacks, telemetry and error layers are coroutines around a call that needs none
    of them: they were an eighth of what the event loop spent on a request (bench/LOG.md). The route
    stays, for the OpenAPI page and for wrong methods.
    """

    direct: Exchange | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            self.direct is not None
            and scope["type"] == "http"
            and scope["path"] == SEGMENT_PATH
            and scope["method"] == "POST"
        ):
            await self.direct(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class _Direct:
    """`POST /segment` as plain ASGI, with the answers that the routed one gives."""

    def __init__(self, rest: _Rest) -> None:
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            answer = await self._rest.segment(request)
        except ServiceError as error:
            answer = await self._rest.service_error(request, error)
        await answer(scope, receive, send)


class _Rest:
    """The endpoints, with what they share."""

    def __init__(
        self,
        segmenter: Segmenter,
        telemetry: Telemetry,
        options: RestOptions,
        uploads: Uploads,
        ready: Callable[[], bool],
    ) -> None:
        self._segmenter = segmenter
        self._telemetry = telemetry
        self._options = options
        self._uploads = uploads
        self._ready = ready

    async def segment(self, request: Request) -> Response:
        record, headers = record_of(request), request.headers
        record.method = "Segment"
        asked = request.query_params.get("model")
        models, default = self._segmenter.models(), self._options.default_model
        record.model = known_name(models, default, asked)
        # Parameters first: a typing mistake should not cost an upload.
        draft = segment_request(
            request.query_params.multi_items(), headers.get("accept"), self._options.deadline_s
        )
        # And whoever is to be turned away should know it before an upload, too.
        self._segmenter.check(draft)
        with self._uploads.begin() as upload:
            body = await upload.in_time(
                read_picture(
                    upload.counted(request.stream()),
                    headers.get("content-type"),
                    headers.get("content-encoding"),
                    headers.get("content-length"),
                    self._options.max_image_bytes,
                )
            )
        record.restart()
        record.timed = True
        reply = await unless_disconnected(
            self._segmenter.segment(replace(draft, body=body)), request.receive
        )
        record.timings, record.height, record.width = reply.timings, reply.height, reply.width
        return Response(
            reply.body,
            media_type=reply.media_type,
            headers={
                "X-Model": reply.model,
                "X-Model-Version": reply.version,
                "Server-Timing": server_timing(reply.timings),
            },
        )

    async def list_models(self, request: Request) -> Response:
        record_of(request).method = "ListModels"
        models, index = self._segmenter.models(), self._segmenter.index()
        return JSONResponse({"models": models_json(models, index, self._options.default_model)})

    async def get_model(self, request: Request, model: str) -> Response:
        record_of(request).method = "GetModel"
        models, index = self._segmenter.models(), self._segmenter.index()
        return JSONResponse(model_json(models, index, self._options.default_model, model))

    async def livez(self, request: Request) -> Response:
        record = record_of(request)
        record.method, record.probe = "Live", True
        return JSONResponse({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        record = record_of(request)
        record.method, record.probe = "Ready", True
        if not self._ready():
            raise ModelNotReady("not ready: the models are loading, or the server is draining")
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        record = record_of(request)
        record.method, record.probe = "Metrics", True
        return Response(self._telemetry.scrape(), media_type=openapi.PROMETHEUS_TYPE)

    async def index(self, request: Request) -> Response:
        record_of(request).method = "Index"
        if wants_page(request.headers.get("accept")):
            return page()
        return JSONResponse(
            {
                "service": openapi.TITLE,
                "segment": "POST a picture to /segment",
                "models": "/v1/models",
                "docs": openapi.DOCS_PATH,
                "outputs": [str(output) for output in Output],
                "latency_target_s": self._options.latency_target_s,
                "max_image_bytes": self._options.max_image_bytes,
            },
            headers={"Vary": "Accept"},
        )

    async def service_error(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, ServiceError):
            raise error
        record = record_of(request)
        # Timed once the upload was complete; the caller's mistakes and refusals do not count.
        record.timed = record.timed and counts_as_latency(status_of(error).http)
        return service_problem(error, record)

    async def framework_error(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        details = {
            404: f"there is nothing at this address: see {openapi.DOCS_PATH}",
            405: f"this address does not take {request.method}: see {openapi.DOCS_PATH}",
        }
        detail = details.get(error.status_code, error.detail)
        headers = dict(error.headers) if error.headers else None
        if request.url.path.startswith(OIP_PREFIX):
            return oip_error(error.status_code, detail, record_of(request), headers)
        return framework_problem(error.status_code, detail, record_of(request), headers)

    async def validation_error(self, request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        detail = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        return framework_problem(422, detail, record_of(request))


def server_timing(timings: Timings) -> str:
    """The stages in milliseconds. Source: W3C Server Timing."""
    stages = (
        ("decode", timings.decode_s),
        ("queue", timings.queue_s),
        ("infer", timings.infer_s),
        ("render", timings.render_s),
    )
    return ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in stages)


async def unless_disconnected(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """Runs `work`, and cancels it when the caller hangs up. The request's body must be read.

    `work` runs in this task, not in one of its own, which would cost every request for the sake of
    the few whose caller leaves.

    Raises: ClientDisconnect, or what `work` raises.
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
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
