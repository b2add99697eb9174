"""Describes the addresses under /v2 for the OpenAPI page.

Source: Open Inference Protocol, inference_rest.md; Triton's extensions, as `operations` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from service.api.http.problem import CHALLENGE, OIP_PREFIX
from service.api.http.schemas import array_of, object_of, ref
from service.api.oip.json_codec import BINARY_TYPE, JSON_TYPE
from service.api.oip.operations import SERVER
from service.api.oip.tensors import INPUT, LABEL_MAP, MAX_IMAGES, OUTPUTS

PROTOCOL: Final = "Open Inference Protocol"
REPOSITORY: Final = "Model repository"
ADMINISTERED: Final = f"{OIP_PREFIX}/repository/"
"""Begins the addresses that need the admin key, on every server."""
TAGS: Final = [
    {
        "name": PROTOCOL,
        "description": "The same models for clients of Triton and KServe (version 2 of the "
        'protocol). Errors are `{"error": "..."}`.',
    },
    {
        "name": REPOSITORY,
        "description": "For operators: list, load and unload models. Needs a key with the role "
        "`admin`.",
    },
]
_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_FLAG: Final = {"type": "boolean"}
_SHAPE: Final = array_of({"type": "integer"})
_PARAMETERS: Final = {"type": "object", "additionalProperties": True}
_DURATION: Final = object_of("count", "ns", count=_COUNT, ns=_COUNT)
_DURATIONS: Final = {"type": "object", "additionalProperties": _DURATION}

SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "OipError": object_of(
        "error", error={**_TEXT, "description": "What is wrong, and what to do about it."}
    ),
    "ServerMetadata": object_of(
        *("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions=array_of(_TEXT)
    ),
    "ServerLive": object_of("live", live=_FLAG),
    "ServerReady": object_of("live", "ready", live=_FLAG, ready=_FLAG),
    "ModelReady": object_of("name", "ready", name=_TEXT, ready=_FLAG),
    "TensorMetadata": object_of(
        *("name", "datatype", "shape"),
        name=_TEXT,
        datatype=_TEXT,
        shape={**_SHAPE, "description": "-1 stands for any length."},
    ),
    "ModelMetadata": object_of(
        *("name", "versions", "platform", "inputs", "outputs"),
        name=_TEXT,
        versions=array_of(_TEXT),
        platform=_TEXT,
        inputs=array_of(ref("TensorMetadata")),
        outputs=array_of(ref("TensorMetadata")),
    ),
    "TensorConfig": object_of(
        *("name", "data_type", "dims"), name=_TEXT, data_type=_TEXT, dims=_SHAPE
    ),
    "ModelConfig": object_of(
        *("name", "platform", "backend", "max_batch_size", "input", "output"),
        name=_TEXT,
        platform=_TEXT,
        backend=_TEXT,
        max_batch_size=_COUNT,
        input=array_of(ref("TensorConfig")),
        output=array_of(ref("TensorConfig")),
        dynamic_batching={"type": "object"},
    ),
    "ModelStatistics": object_of("model_stats", model_stats=array_of(ref("VersionStatistics"))),
    "VersionStatistics": object_of(
        *("name", "version", "inference_count", "execution_count"),
        name=_TEXT,
        version=_TEXT,
        last_inference={**_COUNT, "description": "Milliseconds since the epoch."},
        inference_count={**_COUNT, "description": "Images."},
        execution_count={**_COUNT, "description": "Batches."},
        inference_stats=_DURATIONS,
        batch_stats=array_of({"type": "object"}),
    ),
    "InferInput": object_of(
        *("name", "shape", "datatype"),
        name={"const": INPUT},
        shape=_SHAPE,
        datatype={
            "type": "string",
            "enum": ["UINT8", "BYTES"],
            "description": "UINT8: pixels, RGB, of shape [N,H,W,3]. BYTES: image files, of "
            "shape [N].",
        },
        parameters=_PARAMETERS,
        data={
            "type": "array",
            "items": {},
            "description": "Pixels as numbers, flat or nested; or image files in base64.",
        },
    ),
    "InferOutputRequest": object_of(
        "name", name={"type": "string", "enum": list(OUTPUTS)}, parameters=_PARAMETERS
    ),
    "InferRequest": object_of(
        "inputs",
        id={**_TEXT, "description": "Comes back with the answer."},
        parameters={
            **_PARAMETERS,
            "description": "`timeout` in microseconds, `priority` (1 high, 2 normal, 3 low), "
            "`alpha`, `scale`.",
        },
        inputs={**array_of(ref("InferInput")), "minItems": 1, "maxItems": 1},
        outputs=array_of(ref("InferOutputRequest"), "By default the label map alone."),
    ),
    "InferOutput": object_of(
        *("name", "datatype", "shape"),
        name=_TEXT,
        datatype=_TEXT,
        shape=_SHAPE,
        parameters=_PARAMETERS,
        data={"type": "array", "items": {}, "description": "Numbers, or files in base64."},
    ),
    "InferResponse": object_of(
        *("model_name", "model_version", "outputs"),
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        parameters=_PARAMETERS,
        outputs=array_of(ref("InferOutput")),
    ),
    "RepositoryIndexRequest": object_of(ready={**_FLAG, "description": "List only what is ready."}),
    "RepositoryEntry": object_of(
        *("name", "version", "state", "reason"),
        name=_TEXT,
        version=_TEXT,
        state={"type": "string", "enum": ["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]},
        reason=_TEXT,
    ),
}

_NAME: Final = "camvid-fcn8s-mobilenet_v1"
_IMAGE: Final = {"name": INPUT, "datatype": "UINT8", "shape": [-1, -1, -1, 3]}
_LABEL_MAP: Final = {"name": LABEL_MAP, "datatype": "UINT8", "shape": [-1, -1, -1]}
_ERRORS: Final = {
    "400": ("The request or a parameter is wrong.", "timeout is -1: send microseconds"),
    "401": ("The API key is missing or wrong.", "the API key is missing or wrong"),
    "403": ("The key is not for this.", "this needs a key with the role admin"),
    "404": ("No such model or version.", f"there is no model 'nope': choose from {_NAME}"),
    "408": ("The upload took too long.", "the upload took longer than 30 s"),
    "413": ("Too many bytes or pixels.", "the request is larger than 120065536 bytes"),
    "415": ("Not a kind of image or body that is read.", "the body is not an image"),
    "429": ("Too many requests; see Retry-After.", "the server is busy"),
    "500": ("Inference failed.", "inference failed"),
    "503": ("Loading or shutting down; see Retry-After.", "the server is not ready"),
    "504": ("The deadline passed.", "the deadline passed before the answer was ready"),
}
_RETRIED: Final = ("429", "503")
_INFER_ERRORS: Final = ("400", "404", "408", "413", "415", "429", "500", "503", "504")


def _error(status: str) -> dict[str, Any]:
    description, example = _ERRORS[status]
    content = {JSON_TYPE: {"schema": ref("OipError"), "example": {"error": example}}}
    response: dict[str, Any] = {"description": description, "content": content}
    if status == "401":
        response["headers"] = {"WWW-Authenticate": {"schema": _TEXT, "example": CHALLENGE}}
    if status in _RETRIED:
        wait = {"type": "integer", "minimum": 1}
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": wait}}
    return response


NO_KEY: Final = {"401": _error("401")}
"""The answer that operations have besides, where the server asks for keys."""


def _operation(
    tag: str,
    operation: str,
    summary: str,
    schema: Mapping[str, Any],
    example: object,
    errors: tuple[str, ...] = (),
    **more: Any,
) -> dict[str, Any]:
    content = {JSON_TYPE: {"schema": schema, "example": example}}
    other = {"description": "Any other error.", "content": {JSON_TYPE: {"schema": ref("OipError")}}}
    return {
        "tags": [tag],
        "operationId": operation,
        "summary": summary,
        "responses": {
            "200": {"description": "Done.", "content": content},
            **{status: _error(status) for status in errors},
            "default": other,
        },
        **more,
    }


def _path_parameter(name: str, description: str, example: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1}
    found = {"name": name, "in": "path", "required": True, "schema": schema}
    return {**found, "description": description, "example": example}


_MODEL: Final = _path_parameter("name", "Name or alias of the model.", _NAME)
_VERSION: Final = _path_parameter("version", "Version of the model.", "1")


def _infer(operation: str) -> dict[str, Any]:
    files = {"name": INPUT, "shape": [1], "datatype": "BYTES", "data": ["/9j/4AAQSkZJRg=="]}
    answer = {
        "model_name": _NAME,
        "model_version": "1",
        "parameters": {"network_size": "360x480"},
        "outputs": [{**_LABEL_MAP, "shape": [1, 2, 2], "data": [0, 0, 3, 3]}],
    }
    found = _operation(
        *(PROTOCOL, operation, "Segment images", ref("InferResponse"), answer, _INFER_ERRORS),
        description=f"Up to {MAX_IMAGES} images of one size, in one tensor.",
        requestBody={
            "required": True,
            "content": {
                JSON_TYPE: {"schema": ref("InferRequest"), "example": {"inputs": [files]}},
                BINARY_TYPE: {
                    "schema": {"type": "string", "format": "binary"},
                    "example": "",
                },
            },
        },
    )
    header = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "How many bytes of the body are JSON; the elements of tensors follow as "
        "bytes. With 0 the body is one image file.",
        "schema": {"type": "integer", "minimum": 0},
    }
    found["responses"]["200"]["content"][BINARY_TYPE] = {
        "schema": {"type": "string", "format": "binary"}
    }
    return {**found, "parameters": [header]}


def _of_model(suffix: str = "") -> dict[str, dict[str, Any]]:
    """Describes the five addresses of a model, or, with a suffix for the ids, of a version."""
    at = "/models/{name}" + ("/versions/{version}" if suffix else "")
    known = [_MODEL, _VERSION] if suffix else [_MODEL]
    config = {
        "name": _NAME,
        "platform": "onnx",
        "backend": "fcn-serve",
        "max_batch_size": MAX_IMAGES,
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]}],
        "output": [{"name": LABEL_MAP, "data_type": "TYPE_UINT8", "dims": [-1, -1]}],
        "dynamic_batching": {},
    }
    metadata = {
        "name": _NAME,
        "versions": ["1"],
        "platform": "onnx",
        "inputs": [_IMAGE],
        "outputs": [_LABEL_MAP],
    }
    gets: list[tuple[str, str, str, str, object, tuple[str, ...]]] = [
        ("", "metadata", "Names and shapes of the tensors", "ModelMetadata", metadata, ("404",)),
        (
            *("/ready", "ready", "200 while the model answers requests", "ModelReady"),
            *({"name": _NAME, "ready": True}, ("404", "503")),
        ),
        ("/config", "config", "The model as Triton describes one", "ModelConfig", config, ("404",)),
        (
            *("/stats", "statistics", "What was asked of the model", "ModelStatistics"),
            *({"model_stats": [_STATISTICS]}, ("404",)),
        ),
    ]
    paths = {
        at + end: {
            "parameters": known,
            "get": _operation(
                PROTOCOL, f"model{suffix}_{name}", summary, ref(schema), example, errors
            ),
        }
        for end, name, summary, schema, example, errors in gets
    }
    paths[at + "/infer"] = {"parameters": known, "post": _infer(f"model{suffix}_infer")}
    return paths


_STATISTICS: Final = {
    "name": _NAME,
    "version": "1",
    "last_inference": 0,
    "inference_count": 0,
    "execution_count": 0,
    "inference_stats": {"success": {"count": 0, "ns": 0}},
    "batch_stats": [],
}


def _administered(
    operation: str, summary: str, schema: Mapping[str, Any], example: object, body: dict[str, Any]
) -> dict[str, Any]:
    errors = ("400", "401", "403", "404") if "load" in operation else ("400", "401", "403")
    return _operation(
        *(REPOSITORY, operation, summary, schema, example, errors),
        requestBody={"content": {JSON_TYPE: {"schema": body}}},
    )


_NOTHING: Final = {"type": "object"}
_ENTRY: Final = {"name": _NAME, "version": "1", "state": "READY", "reason": ""}
PATHS: Final[dict[str, dict[str, Any]]] = {
    OIP_PREFIX + path: operations
    for path, operations in {
        "": {
            "get": _operation(
                *(PROTOCOL, "server_metadata", "Name and extensions of the server"),
                *(ref("ServerMetadata"), SERVER),
            )
        },
        "/health/live": {
            "get": _operation(
                *(PROTOCOL, "server_live", "200 while the process answers at all"),
                *(ref("ServerLive"), {"live": True}),
            )
        },
        "/health/ready": {
            "get": _operation(
                *(PROTOCOL, "server_ready", "200 while new requests are wanted"),
                *(ref("ServerReady"), {"live": True, "ready": True}, ("503",)),
            )
        },
        "/models/stats": {
            "get": _operation(
                *(PROTOCOL, "statistics", "What was asked of all models"),
                *(ref("ModelStatistics"), {"model_stats": [_STATISTICS]}),
            )
        },
        **_of_model(),
        **_of_model("_version"),
        "/repository/index": {
            "post": _administered(
                "repository_index",
                "List the models of the repository",
                schema=array_of(ref("RepositoryEntry")),
                example=[_ENTRY],
                body=ref("RepositoryIndexRequest"),
            )
        },
        "/repository/models/{name}/load": {
            "parameters": [_MODEL],
            "post": _administered("model_load", "Load a model", _NOTHING, {}, _NOTHING),
        },
        "/repository/models/{name}/unload": {
            "parameters": [_MODEL],
            "post": _administered("model_unload", "Unload a model", _NOTHING, {}, _NOTHING),
        },
    }.items()
}
