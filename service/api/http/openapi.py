"""Describes each operation for the OpenAPI page; the endpoints read requests by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from starlette.responses import PlainTextResponse

from service.api.call import MAX_DEADLINE_MS
from service.api.http import examples
from service.api.http.body import FIELD, RAW_TYPES
from service.api.http.examples import problem_examples
from service.api.http.parameters import PRIORITIES
from service.api.http.problem import CHALLENGE
from service.api.http.problem import MEDIA_TYPE as PROBLEM_TYPE
from service.core.outputs.registry import DEFAULT, all_outputs
from service.core.types import MAX_SIDE_PX, Dtype
from service.errors import ModelNotReady, ServiceError, UnknownModel

TITLE: Final = "FCN Serve"
VERSION: Final = "1"
DESCRIPTION: Final = (
    "Semantic segmentation: post an image, get the class of every pixel. "
    "Errors are application/problem+json (RFC 9457)."
)
DOCS_PATH: Final = "/docs"
STATUS_PATH: Final = "/status"
OPENAPI_PATH: Final = "/openapi.json"
FILES_PATH: Final = "/web"
PROMETHEUS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_PROBLEM_SCHEMA: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "request_id"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:fcn:problem:invalid-image"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong and what to do about it."},
        "instance": {"type": "string"},
        "request_id": {"type": "string", "description": "Also in the X-Request-ID header."},
    },
}
KEY_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, where the server has a file of them (FCN_API_KEYS_FILE).",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same key in a header of its own.",
    },
}
_RETRY_AFTER: Final = {
    "description": "Seconds to wait before the next try.",
    "schema": {"type": "integer", "minimum": 1},
}
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_BODIES: Final = {
    "application/json": {
        "schema": examples.CLASSES_SCHEMA,
        "examples": examples.CLASSES_EXAMPLES,
    },
    "application/geo+json": {
        "schema": examples.POLYGONS_SCHEMA,
        "examples": examples.POLYGONS_EXAMPLES,
    },
}
"""Replies that are text; the others are bytes."""
_IMAGE: Final = {"type": "string", "format": "binary", "minLength": 1}


def _problems(*kinds: type[ServiceError], **reasons: str) -> dict[str, dict[str, Any]]:
    """Describes responses by status, given as `_404="why"`, with an example of every error that has
    it.

    kinds: of these errors only. The last response is for the rest, 404 and 405 of the framework.
    """
    responses: dict[str, dict[str, Any]] = {}
    for name, reason in reasons.items():
        status = name.removeprefix("_")
        examples = problem_examples(int(status), kinds or None)
        content = {"schema": _PROBLEM_SCHEMA, "examples": examples}
        responses[status] = {"description": reason, "content": {PROBLEM_TYPE: content}}
        if status in ("429", "503"):
            responses[status]["headers"] = {"Retry-After": _RETRY_AFTER}
    other = {"schema": _PROBLEM_SCHEMA}
    responses["default"] = {"description": "Any other error.", "content": {PROBLEM_TYPE: other}}
    return responses


def _json(description: str, schema: dict[str, Any], example: object) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "example": example}}
    return {"200": {"description": description, "content": content}}


def _header(description: str, example: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}, "example": example}


def _query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


SEGMENT: Final[dict[str, Any]] = {
    "operationId": "segment",
    "summary": "Segment an image",
    "responses": {
        "200": {
            "description": "The label map, or what `output` asked for.",
            "content": {
                o.media_type: _BODIES.get(o.media_type, _BINARY) for o in all_outputs().values()
            },
            "headers": {
                "X-Request-ID": _header("As sent, or made up.", examples.REQUEST_ID),
                "X-Model": _header("What answered.", "camvid-fcn8s-mobilenet_v1"),
                "X-Model-Version": _header("Its version.", "1"),
                "X-Network-Size": _header(
                    "Height and width at which the network saw the image.", "360x480"
                ),
                "Server-Timing": _header(
                    "Milliseconds in each stage.",
                    "decode;dur=3.10, queue;dur=0.20, infer;dur=61.50, render;dur=1.40",
                ),
            },
        },
        **_problems(
            _400="The image cannot be read, or a parameter is wrong.",
            _404="No such model or version.",
            _406="Accept allows none of the kinds of answer.",
            _408="The upload took too long.",
            _413="Too many bytes or pixels.",
            _415="Not a kind of image or body that is read.",
            _429="Too many requests; see Retry-After.",
            _500="Inference failed.",
            _503="Loading or shutting down; see Retry-After.",
            _504="The deadline passed.",
        ),
    },
    "requestBody": {
        "required": True,
        "content": {
            **dict.fromkeys(RAW_TYPES, {"schema": _IMAGE}),
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: _IMAGE},
                    "additionalProperties": False,
                }
            },
        },
    },
    "parameters": [
        _query("model", "Name of the model; the server's default.", {"type": "string"}),
        _query("version", "Version of the model; the newest.", {"type": "string"}),
        _query(
            "output",
            "What to answer with; wins over Accept.",
            {"type": "string", "enum": list(all_outputs()), "default": DEFAULT},
        ),
        _query(
            "alpha",
            "Opacity of the classes in an overlay, which leaves background alone unless named.",
            {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
        ),
        _query(
            "outlines",
            "Draw the borders of the classes in an overlay.",
            {"type": "boolean", "default": False},
        ),
        _query(
            "dtype",
            "Type of the numbers of probabilities; uint8 is 255 times the probability.",
            {"type": "string", "enum": [str(d) for d in Dtype], "default": "uint8"},
        ),
        {
            **_query(
                "classes",
                "Keep only these classes, by name or id, separated by commas; may repeat.",
                {"type": "array", "items": {"type": "string"}},
            ),
            "style": "form",
            "explode": False,
        },
        _query(
            "priority",
            "Who goes first, for a while, when the device is busy.",
            {"type": "string", "enum": list(PRIORITIES), "default": "normal"},
        ),
        _query(
            "deadline_ms",
            "Time the answer is worth waiting for, in milliseconds.",
            {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS},
        ),
        _query(
            "scale",
            "At what size the network sees the image: auto, at one that the model knows; none, at "
            "its own; or the most pixels that the longer side may have. The answer has the image's "
            "own size.",
            {
                "anyOf": [
                    {"type": "string", "enum": ["auto", "none"]},
                    {"type": "integer", "minimum": 1, "maximum": MAX_SIDE_PX},
                ],
                "default": "auto",
            },
        ),
    ],
}
"""An OpenAPI operation; the others are keyword arguments of FastAPI's `add_api_route`."""

LIST_MODELS: Final[dict[str, Any]] = {
    "operation_id": "list_models",
    "summary": "All models with their versions, state and contracts",
    "responses": {
        **_json(
            "The models, by name.", examples.MODELS_SCHEMA, {"models": [examples.MODEL_EXAMPLE]}
        ),
        **_problems(),
    },
}
GET_MODEL: Final[dict[str, Any]] = {
    "operation_id": "get_model",
    "summary": "One model with its versions, state and contracts",
    "responses": {
        **_json("The model.", examples.MODEL_SCHEMA, examples.MODEL_EXAMPLE),
        **_problems(UnknownModel, _404="No such model."),
    },
}
LIVEZ: Final[dict[str, Any]] = {
    "operation_id": "livez",
    "summary": "200 while the process answers at all",
    "responses": {
        **_json("The process is alive.", examples.status_schema("alive"), {"status": "alive"}),
        **_problems(),
    },
}
READYZ: Final[dict[str, Any]] = {
    "operation_id": "readyz",
    "summary": "200 while new requests are wanted",
    "responses": {
        **_json(
            "The server accepts requests.", examples.status_schema("ready"), {"status": "ready"}
        ),
        **_problems(ModelNotReady, _503="Loading or draining."),
    },
}
METRICS: Final[dict[str, Any]] = {
    "operation_id": "metrics",
    "summary": "Metrics in the Prometheus text format",
    "response_class": PlainTextResponse,  # else the page says that it may be JSON
    "responses": {
        "200": {
            "description": "Metrics.",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": "# TYPE fcn_inflight_requests gauge\nfcn_inflight_requests 0.0\n",
                },
                "application/openmetrics-text": {
                    "schema": {"type": "string"},
                    "example": "# TYPE fcn_inflight_requests gauge\n"
                    "fcn_inflight_requests 0.0\n# EOF\n",
                },
            },
        },
        **_problems(),
    },
}

NO_KEY: Final = {
    status: {**response, "headers": {"WWW-Authenticate": _header("How to send it.", CHALLENGE)}}
    for status, response in _problems(_401="The API key is missing or wrong.").items()
    if status == "401"
}
"""The answer that operations have besides, where the server asks for keys."""


def with_keys(document: dict[str, Any], is_open: Callable[[str], bool] | None) -> dict[str, Any]:
    """Adds the two ways to send a key, and what they are asked for. May be called again.

    is_open: whether an address needs none; None where the server asks for no keys.
    """
    components = {**document.get("components", {}), "securitySchemes": KEY_SCHEMES}
    paths = {}
    for path, operations in document["paths"].items():
        paths[path] = operations
        if is_open is not None and not is_open(path):
            paths[path] = {
                method: {
                    **operation,
                    "security": [{name: []} for name in KEY_SCHEMES],
                    "responses": {**operation["responses"], **NO_KEY},
                }
                for method, operation in operations.items()
            }
    return {**document, "components": components, "paths": paths}
