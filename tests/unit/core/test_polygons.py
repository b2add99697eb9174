"""The rings, filled again by crossing numbers, are the label map."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.outputs import polygons
from service.core.outputs.polygons import polygons_json
from service.errors import ImageTooLarge
from tests.drawing import UInt8Array, street
from tests.tiny_models import contract, expected_label_map

CONTRACT = contract()
BoolArray = npt.NDArray[np.bool_]
Rings = list[list[list[int]]]


def geometries(label_map: UInt8Array) -> dict[int, list[Rings]]:
    """The polygons of each class."""
    body = json.loads(polygons_json(label_map, CONTRACT, model="tiny", version="7"))
    assert (body["type"], body["model"], body["version"]) == ("FeatureCollection", "tiny", "7")
    assert (body["height"], body["width"]) == label_map.shape
    for feature in body["features"]:
        assert (feature["type"], feature["geometry"]["type"]) == ("Feature", "MultiPolygon")
        assert feature["properties"]["name"] == CONTRACT.classes[feature["id"]].name
        assert feature["properties"]["pixels"] == (label_map == feature["id"]).sum()
    return {f["id"]: f["geometry"]["coordinates"] for f in body["features"]}


def filled(polygon: Rings, size: tuple[int, ...]) -> BoolArray:
    """The pixels whose centre has an odd number of the rings' lines to its left."""
    crossings = np.zeros((size[0], size[1] + 1), np.uint8)
    for ring in polygon:
        for (x, y), (other_x, other_y) in zip(ring, ring[1:], strict=False):
            assert (x == other_x) != (y == other_y), "along the edges of pixels"
            if x == other_x:
                crossings[min(y, other_y) : max(y, other_y), x] ^= 1
    inside = np.bitwise_xor.accumulate(crossings, axis=1)
    assert not inside[:, -1].any()
    return inside[:, :-1].astype(bool)


def area(ring: list[list[int]]) -> float:
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    classes=st.integers(1, 3),
    void=st.sampled_from([0.0, 0.3]),
)
def test_filled_again_they_are_the_label_map(
    seed: int, height: int, width: int, classes: int, void: float
) -> None:
    rng = np.random.default_rng(seed)
    label_map = rng.integers(0, classes, (height, width), np.uint8)
    label_map[rng.random((height, width)) < void] = 255
    drawn = np.full(label_map.shape, 255, np.uint8)
    for class_id, regions in geometries(label_map).items():
        for region in regions:
            inside = filled(region, label_map.shape)
            assert (drawn[inside] == 255).all(), "no pixel is in two regions"
            drawn[inside] = class_id
            assert connected(inside), "a region is of one piece"
            for n, ring in enumerate(region):
                assert ring[0] == ring[-1]
                assert len({tuple(point) for point in ring}) == len(ring) - 1, "touches itself"
                assert (area(ring) > 0) == (n == 0), "the outside first, then the holes"
    assert (drawn == label_map).all()


def connected(mask: BoolArray) -> bool:
    """Says whether one walk over shared sides reaches all of the mask."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    todo = [left.pop()]
    while todo:
        y, x = todo.pop()
        for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if near in left:
                left.remove(near)
                todo.append(near)
    return not left


def test_a_lake_with_an_island() -> None:
    label_map = np.zeros((7, 9), np.uint8)
    label_map[1:6, 1:8] = 1
    label_map[2:5, 2:7] = 2
    label_map[3, 4] = 0
    found = geometries(label_map)
    square = [[4, 3], [5, 3], [5, 4], [4, 4], [4, 3]]
    frame = [[0, 0], [9, 0], [9, 7], [0, 7], [0, 0]]
    assert found[0][1:] == [[square]]
    assert found[0][0][0] == frame and len(found[0][0]) == 2
    assert [len(region) for region in found[1]] == [2]
    assert [len(region) for region in found[2]] == [2]
    assert [abs(area(ring)) for ring in found[2][0]] == [15.0, 1.0]


def test_regions_that_touch_at_a_corner_are_two() -> None:
    assert [len(p) for p in geometries(np.array([[0, 1], [1, 0]], np.uint8)).values()] == [2, 2]


def test_a_larger_image_fills_to_the_pixel() -> None:
    label_map = expected_label_map(street(90, 120))
    for class_id, regions in geometries(label_map).items():
        inside = sum(filled(region, label_map.shape).astype(int) for region in regions)
        assert ((label_map == class_id) == inside).all()


def test_a_comb_is_one_long_ring() -> None:
    comb = np.zeros((9, 301), np.uint8)
    comb[1:, 1::2] = 1
    found = geometries(comb)
    assert [len(region) for region in found[0]] == [1]
    assert len(found[0][0][0]) == 4 * 150 + 5
    assert (filled(found[0][0], comb.shape) == (comb == 0)).all()
    assert len(found[1]) == 150


def test_a_side_beyond_16_bits() -> None:
    wide = (np.arange(70_000) // 999 % 3).astype(np.uint8)[None]
    for label_map in (wide, wide.T):
        for class_id, regions in geometries(label_map).items():
            inside = sum(filled(region, label_map.shape).astype(int) for region in regions)
            assert ((label_map == class_id) == inside).all()


def test_nothing_but_void_has_no_features() -> None:
    assert geometries(np.full((3, 4), 255, np.uint8)) == {}


def test_too_many_edges_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons, "MAX_EDGES", 10)
    noise = np.indices((6, 6)).sum(axis=0).astype(np.uint8) % 2
    with pytest.raises(ImageTooLarge, match="72 edges.*up to 10.*ask for rle"):
        polygons_json(noise, CONTRACT, model="tiny", version="1")
