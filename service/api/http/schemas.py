"""Describes the shapes of REST's answers, each once, as `components/schemas` of the OpenAPI page.

Programs that write clients make a class of each, so the names are those that callers will read.
"""

from __future__ import annotations

from typing import Any, Final

from service.api.http.body import FIELD

_SIDE: Final = {"type": "integer", "minimum": 1}
_COUNT: Final = {"type": "integer", "minimum": 0}
_COLOR: Final = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": 255},
    "minItems": 3,
    "maxItems": 3,
    "description": "Red, green and blue.",
}
_POINT: Final = {
    "type": "array",
    "items": {"type": "number"},
    "minItems": 2,
    "maxItems": 2,
    "description": "x and y in pixels from the top left corner.",
}
_TEXT: Final = {"type": "string"}
IMAGE_FILE: Final = {"type": "string", "format": "binary", "minLength": 1}


def ref(name: str) -> dict[str, str]:
    """Refers to the schema of this name."""
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(*required: str, says: str = "", **properties: dict[str, Any]) -> dict[str, Any]:
    """Describes an object.

    required: names of the members that are always there. says: its description, a name that
    a member may have.
    """
    found: dict[str, Any] = {"type": "object", "required": list(required), "properties": properties}
    return {**found, "description": says} if says else found


def array_of(item: dict[str, Any], description: str = "") -> dict[str, Any]:
    found = {"type": "array", "items": item}
    return {**found, "description": description} if description else found


_ANSWERED: Final[dict[str, Any]] = {
    "model": {**_TEXT, "description": "Name of the model that answered."},
    "version": {**_TEXT, "description": "Its version."},
    "height": {**_SIDE, "description": "Height of the image in pixels, after EXIF turned it."},
    "width": {**_SIDE, "description": "Width of the image in pixels, after EXIF turned it."},
}
SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "Problem": object_of(
        *("type", "title", "status", "detail", "instance", "request_id"),
        says="An error as RFC 9457 has it.",
        type={
            **_TEXT,
            "description": "The kind of error, which never changes.",
            "examples": ["urn:fcn:problem:invalid-image"],
        },
        title={**_TEXT, "description": "The kind of error in words."},
        status={"type": "integer", "description": "The HTTP status."},
        detail={**_TEXT, "description": "What is wrong, and what to do about it."},
        instance={**_TEXT, "description": "The request, as a URN."},
        request_id={**_TEXT, "description": "The same as the header X-Request-ID."},
    ),
    "ImageForm": {
        **object_of(FIELD, says="An image as the only field of a form.", **{FIELD: IMAGE_FILE}),
        "additionalProperties": False,
    },
    "ClassReport": object_of(
        *("model", "version", "height", "width", "classes"),
        says="The classes in an image: the answer to `output=json` and `output=rle`.",
        **_ANSWERED,
        network_height={
            **_SIDE,
            "description": "With `json`: height at which the network saw the image.",
        },
        network_width={
            **_SIDE,
            "description": "With `json`: width at which the network saw the image.",
        },
        classes=array_of(ref("ClassShare"), "The classes that occur in the image, by id."),
        timings_ms={
            "type": "object",
            "additionalProperties": {"type": "number", "minimum": 0},
            "description": "With `json`: milliseconds in each stage before rendering.",
        },
    ),
    "ClassShare": object_of(
        *("id", "name", "color", "pixels", "share"),
        says="How much of the image a class takes, and with `rle` where.",
        id={"type": "integer", "minimum": 0, "maximum": 254},
        name=_TEXT,
        color=_COLOR,
        pixels={**_SIDE, "description": "Number of pixels of this class."},
        share={
            "type": "number",
            "exclusiveMinimum": 0,
            "maximum": 1,
            "description": "The same as a share of all pixels.",
        },
        bbox={
            "type": "array",
            "items": _COUNT,
            "minItems": 4,
            "maxItems": 4,
            "description": "With `rle`: left, top, width and height of the mask in pixels.",
        },
        segmentation=ref("RunLengths"),
    ),
    "RunLengths": object_of(
        *("size", "counts"),
        says="A mask as compressed run lengths of COCO, which pycocotools reads.",
        size={
            "type": "array",
            "items": _SIDE,
            "minItems": 2,
            "maxItems": 2,
            "description": "Height and width.",
        },
        counts=_TEXT,
    ),
    "Polygons": object_of(
        *("type", "features"),
        says="The answer to `output=polygons`: GeoJSON, in pixels of the image.",
        type={"const": "FeatureCollection"},
        **_ANSWERED,
        features=array_of(ref("PolygonFeature"), "A feature for each class that occurs."),
    ),
    "PolygonFeature": object_of(
        *("type", "properties", "geometry"),
        type={"const": "Feature"},
        id={"type": "integer", "description": "The class id."},
        properties=ref("ClassShare"),
        geometry=ref("MultiPolygon"),
    ),
    "MultiPolygon": object_of(
        *("type", "coordinates"),
        says="The regions of a class. Each is its outer ring, then the rings of its holes.",
        type={"const": "MultiPolygon"},
        coordinates=array_of(array_of(array_of(_POINT))),
    ),
    "ModelList": object_of("models", models=array_of(ref("Model"), "All models, by name.")),
    "Model": object_of(
        *("name", "is_default", "default_version", "versions"),
        name=_TEXT,
        description={**_TEXT, "description": "What the model is for, in one line."},
        is_default={
            "type": "boolean",
            "description": "Whether it answers requests that name no model.",
        },
        default_version={
            "type": ["string", "null"],
            "description": "The version that answers requests that name none. Null where no "
            "version is ready.",
        },
        aliases=array_of(ref("ModelAlias"), "Other names that requests may use."),
        versions=array_of(ref("ModelVersion")),
    ),
    "ModelAlias": object_of(
        "name",
        name=_TEXT,
        version={
            "type": ["string", "null"],
            "description": "The version that it means. Null for the default version.",
        },
    ),
    "ModelVersion": object_of(
        *("version", "state"),
        version=_TEXT,
        state={
            **_TEXT,
            "description": "`ready`, `loading`, `failed`, `draining` or `unloaded`.",
        },
        reason={**_TEXT, "description": "Why it is not ready."},
        precision=_TEXT,
        provider={**_TEXT, "description": "Where it runs: `cpu`, `cuda` or `tensorrt`."},
        engine={**_TEXT, "description": "What runs it: `onnxruntime` or `openvino`."},
        contract=ref("Contract"),
    ),
    "Contract": object_of(
        "classes",
        says="What the model's file says of itself.",
        format_version={"type": "integer"},
        model_name=_TEXT,
        architecture=_TEXT,
        classes=array_of(ref("ContractClass")),
        ignore_index={
            "type": "integer",
            "description": "Value of pixels without a class in label maps.",
        },
        input={"type": "object", "description": "The tensor that the network takes, and sizes."},
        outputs={"type": "object", "description": "The tensors that the network gives."},
        training_data=object_of(name=_TEXT, licence=_TEXT, source=_TEXT),
        scores={
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "Measured scores, by name, from 0 to 1.",
        },
        precision=_TEXT,
        git_revision=_TEXT,
    ),
    "ContractClass": object_of(
        *("id", "name", "color"),
        id={"type": "integer", "minimum": 0, "maximum": 254},
        name=_TEXT,
        color=_COLOR,
        description=_TEXT,
    ),
    "Alive": object_of("status", status={"const": "alive"}),
    "Ready": object_of("status", status={"const": "ready"}),
}
