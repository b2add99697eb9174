"""Describes each operation for the OpenAPI page; the endpoints read requests by themselves.

Texts are for callers: what to send and what comes back, in whole sentences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from starlette.responses import PlainTextResponse

from service.api.call import MAX_DEADLINE_MS
from service.api.http import examples
from service.api.http.body import RAW_TYPES
from service.api.http.examples import problem_examples
from service.api.http.parameters import PRIORITIES
from service.api.http.problem import CHALLENGE, OIP_PREFIX
from service.api.http.problem import MEDIA_TYPE as PROBLEM_TYPE
from service.api.http.schemas import IMAGE_FILE, SCHEMAS, ref
from service.api.oip import openapi as oip
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
SEGMENT_PATH: Final = "/segment"
PROMETHEUS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

TAGS: Final = [
    {"name": "Segmentation", "description": "Send an image, and get the class of every pixel."},
    {"name": "Models", "description": "Which models there are, and what each one knows."},
    {"name": "Server", "description": "Whether the server works, and how fast."},
    *oip.TAGS,
]
KEY_SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, if the server asks for one.",
    },
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same key in a header of its own.",
    },
}
_PROBLEM: Final = ref("Problem")
_RETRY_AFTER: Final = {
    "description": "Seconds to wait before the next try.",
    "schema": {"type": "integer", "minimum": 1},
}
_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_BODIES: Final = {
    "application/json": {
        "schema": ref("ClassReport"),
        "examples": examples.CLASSES_EXAMPLES,
    },
    "application/geo+json": {
        "schema": ref("Polygons"),
        "examples": examples.POLYGONS_EXAMPLES,
    },
}
"""Replies that are text; the others are bytes."""


def _problems(*kinds: type[ServiceError], **reasons: str) -> dict[str, dict[str, Any]]:
    """Describes responses by status, given as `_404="why"`, with an example of every error that has
    it.

    kinds: of these errors only. The last response is for the rest, 404 and 405 of the framework.
    """
    responses: dict[str, dict[str, Any]] = {}
    for name, reason in reasons.items():
        status = name.removeprefix("_")
        examples = problem_examples(int(status), kinds or None)
        content = {"schema": _PROBLEM, "examples": examples}
        responses[status] = {"description": reason, "content": {PROBLEM_TYPE: content}}
        if status in ("429", "503"):
            responses[status]["headers"] = {"Retry-After": _RETRY_AFTER}
    other = {"schema": _PROBLEM}
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
    "tags": ["Segmentation"],
    "summary": "Segment an image",
    "description": "Send the image as the body, or as the form field `image`. The answer is a PNG "
    "as large as the image, whose pixel values are class ids, unless `output` or Accept asks for "
    "another.",
    "responses": {
        "200": {
            "description": "The label map, or what `output` asked for. JSON is compressed where "
            "Accept-Encoding names gzip.",
            "content": {
                o.media_type: _BODIES.get(o.media_type, _BINARY) for o in all_outputs().values()
            },
            "headers": {
                "X-Request-ID": _header("The id that was sent, or a new one.", examples.REQUEST_ID),
                "X-Model": _header("The model that answered.", "camvid-fcn8s-mobilenet_v1"),
                "X-Model-Version": _header("The version of that model.", "1"),
                "X-Network-Size": _header(
                    "Height and width at which the network saw the image.", "360x480"
                ),
                "Server-Timing": _header(
                    "Milliseconds that each stage took.",
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
            **dict.fromkeys(RAW_TYPES, {"schema": IMAGE_FILE}),
            "multipart/form-data": {"schema": ref("ImageForm")},
        },
    },
    "parameters": [
        _query("model", "Name of the model. Default: the server's.", {"type": "string"}),
        _query("version", "Version of the model. Default: the newest.", {"type": "string"}),
        _query(
            "output",
            "What to answer with. It wins over Accept.",
            {"type": "string", "enum": list(all_outputs()), "default": DEFAULT},
        ),
        _query(
            "alpha",
            "Opacity of the class colours in an overlay. The background stays as it is, unless "
            "`classes` names it.",
            {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
        ),
        _query(
            "outlines",
            "Draw the borders of the classes in an overlay.",
            {"type": "boolean", "default": False},
        ),
        _query(
            "dtype",
            "Type of the numbers in probabilities. uint8 is 255 times the probability.",
            {"type": "string", "enum": [str(d) for d in Dtype], "default": "uint8"},
        ),
        {
            **_query(
                "classes",
                "Keep only these classes: names or ids, separated by commas. The parameter may be "
                "repeated.",
                {"type": "array", "items": {"type": "string"}},
            ),
            "style": "form",
            "explode": False,
        },
        _query(
            "priority",
            "Order of your own images while the server is busy. `low` is for bulk work, which "
            "waits for everybody else.",
            {"type": "string", "enum": list(PRIORITIES), "default": "normal"},
        ),
        _query(
            "deadline_ms",
            "For how many milliseconds the answer is worth waiting. After that: 504.",
            {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS},
        ),
        _query(
            "scale",
            "The size at which the network sees the image. `auto`: a size that the model knows. "
            "`none`: the size of the image. A number: the longer side has at most so many pixels. "
            "The answer always has the size of the image.",
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
    "tags": ["Models"],
    "summary": "List all models with their versions, state and contracts",
    "responses": {
        **_json("The models, by name.", ref("ModelList"), {"models": [examples.MODEL_EXAMPLE]}),
        **_problems(),
    },
}
GET_MODEL: Final[dict[str, Any]] = {
    "operation_id": "get_model",
    "tags": ["Models"],
    "summary": "Show one model with its versions, state and contracts",
    "responses": {
        **_json("The model.", ref("Model"), examples.MODEL_EXAMPLE),
        **_problems(UnknownModel, _404="No such model."),
    },
}
LIVEZ: Final[dict[str, Any]] = {
    "operation_id": "livez",
    "tags": ["Server"],
    "summary": "Answer 200 while the process works",
    "responses": {
        **_json("The process is alive.", ref("Alive"), {"status": "alive"}),
        **_problems(),
    },
}
READYZ: Final[dict[str, Any]] = {
    "operation_id": "readyz",
    "tags": ["Server"],
    "summary": "Answer 200 while new requests are wanted",
    "responses": {
        **_json("The server accepts requests.", ref("Ready"), {"status": "ready"}),
        **_problems(ModelNotReady, _503="Loading or draining."),
    },
}
METRICS: Final[dict[str, Any]] = {
    "operation_id": "metrics",
    "tags": ["Server"],
    "summary": "Show the metrics in the Prometheus text format",
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


def completed(document: dict[str, Any], is_open: Callable[[str], bool] | None) -> dict[str, Any]:
    """Adds what FastAPI does not know: `/segment`, all under /v2, the shapes of answers, and keys.

    is_open: whether an address needs no key; None where the server asks for no keys. May be called
    again.
    """
    paths = {SEGMENT_PATH: {"post": SEGMENT}, **document["paths"], **oip.PATHS}
    components = {"schemas": {**SCHEMAS, **oip.SCHEMAS}, "securitySchemes": KEY_SCHEMES}
    described = {}
    for path, item in paths.items():
        described[path] = item
        if path.startswith(oip.ADMINISTERED):
            described[path] = _with_key(item, {})
        elif is_open is not None and not is_open(path):
            described[path] = _with_key(item, oip.NO_KEY if path.startswith(OIP_PREFIX) else NO_KEY)
    return {**document, "components": components, "paths": described}


def _with_key(item: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """Says of each operation of a path that it takes a key. answers: that it has besides."""
    return {
        name: part
        if name == "parameters"
        else {
            **part,
            "security": [{scheme: []} for scheme in KEY_SCHEMES],
            "responses": {**part["responses"], **answers},
        }
        for name, part in item.items()
    }
