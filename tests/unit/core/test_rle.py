"""pycocotools, which defined the format, is asked about every mask."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from service.core.outputs.rle import rle_json
from tests.drawing import UInt8Array
from tests.tiny_models import contract

# Of pycocotools' own arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONTRACT = contract()


def rows(label_map: UInt8Array) -> list[dict[str, Any]]:
    body = json.loads(rle_json(label_map, CONTRACT, model="tiny", version="7"))
    assert (body["model"], body["version"]) == ("tiny", "7")
    assert (body["height"], body["width"]) == label_map.shape
    found: list[dict[str, Any]] = body["classes"]
    return found


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    cell=st.integers(1, 5),
)
def test_pycocotools_reads_the_same_masks(seed: int, height: int, width: int, cell: int) -> None:
    noise = np.random.default_rng(seed).choice(
        np.array([0, 1, 2, 255], np.uint8), (height, width), p=[0.4, 0.3, 0.2, 0.1]
    )
    label_map = np.kron(noise, np.ones((cell, cell), np.uint8))[:height, :width]
    found = rows(label_map)
    assert [row["id"] for row in found] == sorted({0, 1, 2} & set(label_map.ravel().tolist()))
    for row in found:
        mask = label_map == row["id"]
        theirs = coco.encode(np.asfortranarray(mask))
        assert row["segmentation"]["counts"] == theirs["counts"].decode()
        assert (coco.decode(row["segmentation"]) == mask).all()
        assert row["bbox"] == coco.toBbox(theirs).tolist()
        assert row["pixels"] == coco.area(theirs)


@pytest.mark.parametrize("size", [(2000, 1500), (1, 70_000), (70_000, 1)])
def test_long_runs_take_more_groups_of_bits(size: tuple[int, int]) -> None:
    label_map = np.zeros(size, np.uint8)
    label_map.ravel()[size[0] * size[1] // 3 : size[0] * size[1] // 2] = 2
    for row in rows(label_map):
        assert (coco.decode(row["segmentation"]) == (label_map == row["id"])).all()


def test_void_has_no_mask() -> None:
    assert rows(np.full((3, 4), 255, np.uint8)) == []
