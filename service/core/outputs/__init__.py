"""A label map, or the scores behind it -> the bytes of a reply: one module for each kind."""

from service.core.outputs.classes import VOID, class_table, keep, kept_ids
from service.core.outputs.overlay import overlay_png
from service.core.outputs.png import color_png, gray_png, label_map_png
from service.core.outputs.polygons import polygons_json
from service.core.outputs.rle import rle_json
from service.core.outputs.scores import (
    arrays,
    check_arrays,
    check_size,
    confidence,
    npy,
    probabilities,
)
from service.core.outputs.summary import summary_json

__all__ = [
    "GEOJSON",
    "JSON",
    "NPY",
    "PNG",
    "VOID",
    "arrays",
    "check_arrays",
    "check_size",
    "class_table",
    "color_png",
    "confidence",
    "gray_png",
    "keep",
    "kept_ids",
    "label_map_png",
    "npy",
    "overlay_png",
    "polygons_json",
    "probabilities",
    "rle_json",
    "summary_json",
]

PNG = "image/png"
JSON = "application/json"
GEOJSON = "application/geo+json"
NPY = "application/x-npy"
