"""REST: `POST /segment`, the models, the probes and the metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.api.http import openapi
from service.api.http.api_keys import Gate, with_keys
from service.api.http.middleware import Exchange
from service.api.http.page import add_pages, page, wants_page
from service.api.http.problem import framework_problem, record_of, service_problem
from service.api.http.segment import PATH, Asked, Segmenting, reply_headers
from service.api.http.upload import Uploads, read_picture
from service.api.keys import Keys
from service.api.models import model_json, models_json
from service.api.oip.error import OIP_PREFIX, oip_error
from service.core.segmenter import Output, Segmenter
from service.errors import ModelNotReady, ServiceError
from service.telemetry import Telemetry

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RestOptions:
    """max_image_bytes: cap of an upload. latency_target_s: told to the web page.

    default_model: as configured; None when the only model is the default.
    """

    max_image_bytes: int
    latency_target_s: float
    default_model: str | None = None


def create_app(
    segmenter: Segmenter,
    segmenting: Segmenting,
    telemetry: Telemetry,
    options: RestOptions,
    uploads: Uploads,
    ready: Callable[[], bool],
    keys: Keys | None = None,
) -> FastAPI:
    """`ready` says whether new requests are wanted: models loaded and not draining. keys: None lets
    everybody in."""
    app = FastAPI(
        title=openapi.TITLE,
        description=openapi.DESCRIPTION,
        version=openapi.VERSION,
        openapi_url=openapi.OPENAPI_PATH,
        docs_url=None,  # its own come from a CDN; see service.api.http.page
        redoc_url=None,
    )
    rest = _Rest(segmenter, segmenting, telemetry, options, uploads, ready)
    # The last added is the outermost.
    if keys is not None:
        app.add_middleware(Gate, keys=keys)
    app.add_middleware(Exchange, telemetry=telemetry)
    describe = app.openapi
    app.openapi = lambda: with_keys(describe(), asked=keys is not None)  # type: ignore[method-assign]
    app.add_exception_handler(ServiceError, rest.service_error)
    app.add_exception_handler(HTTPException, rest.framework_error)
    app.add_exception_handler(RequestValidationError, rest.validation_error)
    route = app.add_api_route
    # Starlette answers are returned as they are: nothing on the hot path passes pydantic.
    route(PATH, rest.segment, methods=["POST"], **openapi.SEGMENT)
    route("/v1/models", rest.list_models, methods=["GET"], **openapi.LIST_MODELS)
    route("/v1/models/{model}", rest.get_model, methods=["GET"], **openapi.GET_MODEL)
    route("/livez", rest.livez, methods=["GET"], **openapi.LIVEZ)
    route("/readyz", rest.readyz, methods=["GET"], **openapi.READYZ)
    route("/metrics", rest.metrics, methods=["GET"], **openapi.METRICS)
    route("/", rest.index, methods=["GET"], include_in_schema=False)
    add_pages(app)
    return app


class _Rest:
    """The endpoints, with what they share."""

    def __init__(
        self,
        segmenter: Segmenter,
        segmenting: Segmenting,
        telemetry: Telemetry,
        options: RestOptions,
        uploads: Uploads,
        ready: Callable[[], bool],
    ) -> None:
        self._segmenter = segmenter
        self._segmenting = segmenting
        self._telemetry = telemetry
        self._options = options
        self._uploads = uploads
        self._ready = ready

    async def segment(self, request: Request) -> Response:
        """For what `service.api.http.direct` leaves: large, slow and otherwise unusual uploads."""
        record, headers = record_of(request), request.headers
        record.method = "Segment"
        # The first of several, as `headers` gives them; `Gate` has seen to the key.
        by_name = dict(reversed(request.scope["headers"]))
        asked = Asked(request.scope["query_string"], by_name, record, admitted=True)
        try:
            # Parameters first: a typing mistake should not cost an upload. And whoever is to be
            # turned away should know it before, too.
            self._segmenting.check(asked)
            with self._uploads.begin() as upload:
                picture = await upload.in_time(
                    read_picture(
                        upload.counted(request.stream()),
                        headers.get("content-type"),
                        headers.get("content-encoding"),
                        headers.get("content-length"),
                        self._options.max_image_bytes,
                    )
                )
            reply = await unless_disconnected(
                self._segmenting.segment(asked, picture), request.receive
            )
        except ServiceError as error:
            return self._segmenting.problem(error, asked)
        except (ClientDisconnect, asyncio.CancelledError):
            record.model = self._segmenting.model_of(asked)
            raise
        return Response(reply.body, media_type=reply.media_type, headers=reply_headers(reply))

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
        return service_problem(error, record_of(request))

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
