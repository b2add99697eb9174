"""Writes the regions of the classes as GeoJSON, exactly: rings run along the pixels' edges.

Pixels of a class are one region where they share a side.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import orjson

from model.contract import Contract
from service.core.outputs.classes import VOID, class_table
from service.core.outputs.registry import GEOJSON, OutputFormat
from service.core.outputs.rings import Edges, Ring, Rings, rings_of
from service.core.types import UInt8Array
from service.errors import ImageTooLarge

MAX_EDGES: Final = 4_000_000
"""Horizontal edges of all regions, about 400 bytes of memory each. A photo of 2 megapixels has some
ten thousand; noise has one for every pixel."""


def polygons_json(label_map: UInt8Array, contract: Contract, *, model: str, version: str) -> bytes:
    """Writes a FeatureCollection with one Feature, a MultiPolygon, for each class present.

    Coordinates are [x, y] in pixels from the top left corner of the image, y downwards; a pixel
    covers [x, x+1] by [y, y+1]. A polygon is its outer ring, then its holes. `properties` are
    `class_table`'s; height, width, model and version are members of the collection.

    Raises: ImageTooLarge above `MAX_EDGES`.
    """
    regions, pixels = polygons(label_map)
    height, width = label_map.shape
    features: list[dict[str, Any]] = [
        {
            "type": "Feature",
            "id": row["id"],
            "properties": row,
            "geometry": {"type": "MultiPolygon", "coordinates": regions[row["id"]]},
        }
        for row in class_table(label_map, contract, pixels)
    ]
    body = {
        "type": "FeatureCollection",
        "model": model,
        "version": version,
        "height": height,
        "width": width,
        "features": features,
    }
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def polygons(label_map: UInt8Array) -> tuple[dict[int, list[list[Ring]]], list[int]]:
    """Finds the regions of each class id, each an outer ring followed by its holes; void has none.

    And the pixels of each of the 256 ids.

    Raises: ImageTooLarge above `MAX_EDGES`.
    """
    height, width = label_map.shape
    padded = np.full((height + 2, width), VOID, np.uint8)
    padded[1:-1] = label_map
    edges = Edges(padded)
    if len(edges.label) > MAX_EDGES:
        raise ImageTooLarge(
            f"the regions have {len(edges.label)} edges, too many for polygons (up to "
            f"{MAX_EDGES}): ask for rle or label_map, or scale the image down"
        )
    rings = rings_of(edges, height, width)
    pixels = np.bincount(rings.label, weights=rings.area, minlength=256).astype(int).tolist()
    return _regions(rings), pixels


def _regions(rings: Rings) -> dict[int, list[list[Ring]]]:
    """Joins outer rings with their holes."""
    regions: dict[int, list[list[Ring]]] = {}
    outer: dict[int, list[Ring]] = {}
    holes = []
    for ring, area in enumerate(rings.area):
        if area < 0:
            holes.append(ring)
        else:
            pieces = rings.simple(ring)
            if len(pieces) > 1:  # the outside is the one of positive area
                pieces.sort(key=_area, reverse=True)
            outer[ring] = pieces
            regions.setdefault(rings.label[ring], []).append(pieces)
    for ring, parent in _parents(holes, rings).items():
        outer[parent].extend(rings.simple(ring))
    return regions


def _parents(holes: list[int], rings: Rings) -> dict[int, int]:
    """Finds the outer ring around each hole."""
    if not holes:
        return {}
    edges = rings.edges
    # The pixel over a hole's highest edge is of the region; the next border above it in its column
    # is the region's, too: of its outer ring, or of a hole that lies higher.
    highest = rings.highest[holes]
    x = np.minimum(edges.start[highest], edges.end[highest])
    units = edges.above_in_column(edges.y[highest], x)
    over = np.flatnonzero(~edges.under)
    places = edges.y[over] * edges.width + edges.start[over]
    found = rings.ring_of[over[np.searchsorted(places, units, "right") - 1]]
    nearest = dict(zip(holes, found.tolist(), strict=True))
    parents: dict[int, int] = {}
    for index in np.argsort(edges.y[highest], kind="stable").tolist():
        ring = nearest[holes[index]]
        parents[holes[index]] = parents.get(ring, ring)
    return parents


def _area(ring: Ring) -> float:
    """Computes the area, positive of an outer ring."""
    x, y = ring[:, 0].astype(float), ring[:, 1].astype(float)
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


OUTPUT = OutputFormat(
    "polygons",
    GEOJSON,
    lambda reply: polygons_json(
        reply.label_map, reply.contract, model=reply.model, version=reply.version
    ),
    answers_media_type=True,
)
