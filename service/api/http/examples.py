"""Shows what answers and errors look like, for the OpenAPI page.

The examples of errors are made from the errors themselves, so that they cannot say anything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from service import errors
from service.api.call import outcome_of
from service.api.http.problem import problem_document

REQUEST_ID: Final = "5b0c1f3e9a7d4c2e8f6a1b2c3d4e5f60"

ERRORS: Final[tuple[errors.ServiceError, ...]] = (
    errors.InvalidImage("the image cannot be read: the file is cut short or damaged"),
    errors.NotAuthenticated(
        "the API key is missing or wrong: send it in the header Authorization: Bearer KEY, or "
        "X-API-Key: KEY"
    ),
    errors.InvalidParameter("alpha is 1.5: give a number from 0 to 1"),
    errors.UnsupportedImageFormat(
        "the body is not an image this server knows: send JPEG, PNG, WebP, BMP or TIFF"
    ),
    errors.ImageTooLarge(
        "the image is 20000x20000, and the limit is 40000000 pixels: scale it down"
    ),
    errors.NotAcceptable(
        "cannot answer with 'text/html': accept image/png, or leave the header out"
    ),
    errors.UnknownModel("there is no model 'nope': choose from camvid-fcn8s-mobilenet_v1"),
    errors.UnknownVersion("the model has no version '9': choose from 1, 2"),
    errors.UploadTooSlow(30.0),
    errors.Overloaded(2.0),
    errors.LimitExceeded("this caller may ask for 10 requests a second", 1.0, "requests"),
    errors.InferenceFailed(),
    errors.HookFailed("blur"),
    errors.ModelNotReady("the models are still loading: try again in a moment"),
    errors.ShuttingDown(),
    errors.DeadlineExceeded(
        "the deadline passed before the answer was ready: allow more time or send less"
    ),
)
"""One of each that a request can meet."""


def problem_examples(
    status: int, kinds: Sequence[type[errors.ServiceError]] | None = None
) -> dict[str, dict[str, Any]]:
    """Makes OpenAPI examples, by the kind of problem; kinds: those, of all with this status."""
    found = {}
    for error in ERRORS:
        outcome = outcome_of(error, REQUEST_ID)
        if outcome.status.http == status and (kinds is None or type(error) in kinds):
            example = {"summary": error.title, "value": problem_document(outcome)}
            found[error.kind] = example
    return found


_ANSWERED: Final = {
    "model": "camvid-fcn8s-mobilenet_v1",
    "version": "1",
    "height": 2,
    "width": 4,
}
_SKY: Final = {"id": 0, "name": "sky", "color": [128, 128, 128], "pixels": 6, "share": 0.75}
_ROAD: Final = {"id": 3, "name": "road", "color": [128, 64, 128], "pixels": 2, "share": 0.25}
CLASSES_EXAMPLES: Final[dict[str, Any]] = {
    "json": {
        "summary": "output=json",
        "value": {
            **_ANSWERED,
            "network_height": 2,
            "network_width": 4,
            "classes": [_SKY, _ROAD],
            "timings_ms": {"decode": 3.1, "queue": 0.2, "infer": 61.5},
        },
    },
    "rle": {
        "summary": "output=rle",
        "value": {
            **_ANSWERED,
            "classes": [
                {
                    **_SKY,
                    "bbox": [0, 0, 4, 2],
                    "segmentation": {"size": [2, 4], "counts": "031N01"},
                },
                {
                    **_ROAD,
                    "bbox": [1, 1, 2, 1],
                    "segmentation": {"size": [2, 4], "counts": "31101"},
                },
            ],
        },
    },
}

POLYGONS_EXAMPLES: Final[dict[str, Any]] = {
    "polygons": {
        "summary": "A road of two pixels",
        "value": {
            "type": "FeatureCollection",
            **_ANSWERED,
            "features": [
                {
                    "type": "Feature",
                    "id": 3,
                    "properties": _ROAD,
                    "geometry": {
                        "type": "MultiPolygon",
                        "coordinates": [[[[1, 1], [3, 1], [3, 2], [1, 2], [1, 1]]]],
                    },
                }
            ],
        },
    }
}

MODEL_EXAMPLE: Final[dict[str, Any]] = {
    "name": "camvid-fcn8s-mobilenet_v1",
    "description": "Streets from a car: road, pavement, cars, people, signs.",
    "is_default": True,
    "default_version": "1",
    "aliases": [{"name": "stable", "version": "1"}],
    "versions": [
        {
            "version": "1",
            "state": "ready",
            "precision": "fp32",
            "provider": "cpu",
            "engine": "onnxruntime",
            "contract": {
                "format_version": 1,
                "model_name": "camvid-fcn8s-mobilenet_v1",
                "architecture": "fcn8s-mobilenet_v1",
                "classes": [
                    {"id": 0, "name": "sky", "color": [128, 128, 128], "description": ""},
                    {"id": 3, "name": "road", "color": [128, 64, 128], "description": ""},
                ],
                "precision": "fp32",
                "ignore_index": 255,
            },
        }
    ],
}
