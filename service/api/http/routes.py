"""REST: `POST /segment`, the models, the probes and the metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import grpc
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from service.api.call import Calls, Outcome
from service.api.http import openapi
from service.api.http.middleware import RequestMiddleware, call_of, is_open
from service.api.http.page import add_pages, page, wants_page
from service.api.http.problem import error_response
from service.api.http.segment import SegmentEndpoint
from service.api.models import model_json, models_json
from service.api.status import Status
from service.config import ApiConfig
from service.core.outputs.registry import all_outputs
from service.core.segmenter import Segmenter
from service.errors import ModelNotReady
from service.telemetry import Telemetry


def create_app(
    segmenter: Segmenter,
    calls: Calls,
    telemetry: Telemetry,
    config: ApiConfig,
    *,
    segment: SegmentEndpoint,
    ready: Callable[[], bool],
    scrape: Callable[[], Awaitable[bytes]] | None = None,
) -> FastAPI:
    """Makes the application. `ready`: whether requests are wanted, models loaded, not draining.
    scrape: see `service.api.transports.build`."""
    app = FastAPI(
        title=openapi.TITLE,
        description=openapi.DESCRIPTION,
        version=openapi.VERSION,
        openapi_tags=openapi.TAGS,
        openapi_url=openapi.OPENAPI_PATH,
        docs_url=None,  # its own come from a CDN; see service.api.http.page
        redoc_url=None,
        # No answer has an address of the server in it: behind a proxy it is known by another.
        servers=[{"url": "./"}],
        redirect_slashes=False,
    )
    app.add_middleware(RequestMiddleware, calls=calls)
    app.add_exception_handler(HTTPException, _framework_error)
    describe, has_keys = app.openapi, calls.keys.required

    def complete() -> dict[str, Any]:
        return openapi.completed(describe(), is_open if has_keys else None)

    app.openapi = complete  # type: ignore[method-assign]
    # Says 405 to other methods; a POST goes past FastAPI, see `segment_first`.
    app.router.routes.append(Route(openapi.SEGMENT_PATH, segment, methods=["POST"]))
    rest = _Rest(segmenter, telemetry, config, ready, scrape)
    route = app.add_api_route
    route("/v1/models", rest.list_models, methods=["GET"], **openapi.LIST_MODELS)
    route("/v1/models/{model}", rest.get_model, methods=["GET"], **openapi.GET_MODEL)
    route("/livez", rest.livez, methods=["GET"], **openapi.LIVEZ)
    route("/readyz", rest.readyz, methods=["GET"], **openapi.READYZ)
    route("/metrics", rest.metrics, methods=["GET"], **openapi.METRICS)
    route("/", rest.index, methods=["GET"], include_in_schema=False)
    add_pages(app)
    return app


class _Rest:
    """Answers what is not an image, and needs the server's state."""

    def __init__(
        self,
        segmenter: Segmenter,
        telemetry: Telemetry,
        config: ApiConfig,
        ready: Callable[[], bool],
        scrape: Callable[[], Awaitable[bytes]] | None,
    ) -> None:
        self._segmenter = segmenter
        self._telemetry = telemetry
        self._config = config
        self._ready = ready
        self._scrape = scrape

    async def list_models(self, request: Request) -> Response:
        _note(request, "ListModels")
        segmenter = self._segmenter
        found = models_json(segmenter.models(), segmenter.index(), segmenter.default_model())
        return JSONResponse({"models": found})

    async def get_model(self, request: Request, model: str) -> Response:
        _note(request, "GetModel")
        segmenter = self._segmenter
        name = segmenter.resolve_alias(model)
        found = model_json(segmenter.models(), segmenter.index(), segmenter.default_model(), name)
        return JSONResponse(found)

    async def livez(self, request: Request) -> Response:
        _note(request, "Live", probe=True)
        return JSONResponse({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        _note(request, "Ready", probe=True)
        if not self._ready():
            raise ModelNotReady(
                "not ready: the models are loading or have failed, or the server is draining"
            )
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        _note(request, "Metrics", probe=True)
        # Prometheus asks for it unless it is set not to.
        openmetrics = "application/openmetrics-text" in request.headers.get("accept", "")
        if self._scrape is not None:
            body, media_type = await self._scrape(), openapi.PROMETHEUS_TYPE
        elif openmetrics:
            body, media_type = self._telemetry.scrape(openmetrics=True), openapi.OPENMETRICS_TYPE
        else:
            body, media_type = self._telemetry.scrape(), openapi.PROMETHEUS_TYPE
        return Response(body, media_type=media_type, headers={"Vary": "Accept"})

    async def index(self, request: Request) -> Response:
        _note(request, "Index")
        if wants_page(request.headers.get("accept")):
            return page()
        return JSONResponse(
            {
                "service": openapi.TITLE,
                "segment": "POST an image to /segment",
                "models": "/v1/models",
                "docs": openapi.DOCS_PATH,
                "outputs": list(all_outputs()),
                "latency_target_s": self._config.latency_target_s,
                "max_image_bytes": self._config.max_image_bytes,
            },
            headers={"Vary": "Accept"},
        )


def _note(request: Request, method: str, *, probe: bool = False) -> None:
    record = call_of(request.scope).record
    record.method, record.probe = method, probe


async def _framework_error(request: Request, error: Exception) -> Response:
    """Answers what the framework refused before any of our code ran: 404 and 405."""
    if not isinstance(error, HTTPException):
        raise error
    details = {
        404: f"there is nothing at this address: see {openapi.DOCS_PATH}",
        405: f"this address does not take {request.method}: see {openapi.DOCS_PATH}",
    }
    title = HTTPStatus(error.status_code).phrase
    kind = title.lower().replace(" ", "-")
    call = call_of(request.scope)
    outcome = Outcome(
        Status(kind, error.status_code, grpc.StatusCode.UNKNOWN),
        title,
        details.get(error.status_code, error.detail),
        call.id,
    )
    call.refuse(outcome)
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":  # the middleware answers HEAD from it
        headers["Allow"] = "GET, HEAD"
    return error_response(outcome, request.scope["path"], headers)
