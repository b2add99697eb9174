from __future__ import annotations

import io
import json
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.core.outputs import overlay
from service.core.outputs.classes import class_table, select, selected_ids
from service.core.outputs.color import color_png
from service.core.outputs.overlay import overlay_png
from service.core.outputs.png import gray_png, label_map_png
from service.core.outputs.registry import all_outputs, output_named
from service.core.outputs.summary import summary_json
from service.core.types import SegmentOptions, Timings
from service.errors import InvalidParameter
from tests.drawing import UInt8Array, read_png, street
from tests.tiny_models import CLASSES, contract, expected_label_map

CONTRACT = contract()
PALETTE = CONTRACT.palette()
LABEL_MAP = np.array([[0, 1, 2, 255], [2, 2, 0, 1]], np.uint8)
RGB = street(8, 4)[[0, 4]]


def test_a_label_map_is_an_8_bit_palette_png_of_ids() -> None:
    body = label_map_png(LABEL_MAP, PALETTE)
    assert body[24] == 8, "bit depth"
    assert body[25] == 3, "colour type: palette"
    assert (read_png(body) == LABEL_MAP).all()
    with Image.open(io.BytesIO(body)) as image:
        assert (np.array(image.convert("RGB")) == PALETTE[LABEL_MAP]).all()


@given(seed=st.integers(0, 1000), height=st.integers(1, 9), width=st.integers(1, 9))
def test_any_ids_survive_the_png(seed: int, height: int, width: int) -> None:
    padded = np.random.default_rng(seed).integers(0, 256, (height + 3, width + 2), np.uint8)
    label_map = padded[:height, :width]  # a view, as of a padded image
    assert (read_png(label_map_png(label_map, PALETTE)) == label_map).all()


def test_color_is_the_classes_colours_and_black_for_void() -> None:
    colors = read_png(color_png(LABEL_MAP, PALETTE))
    assert colors[0].tolist() == [*(list(c.color) for c in CLASSES), [0, 0, 0]]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.7, 1.0])
def test_an_overlay_blends_classes_and_leaves_void_alone(alpha: float) -> None:
    got = read_png(overlay_png(RGB, LABEL_MAP, PALETTE, alpha)).astype(float)
    blend = (1 - alpha) * RGB + alpha * PALETTE[LABEL_MAP].astype(float)
    expected = np.where((LABEL_MAP == 255)[..., None], RGB, blend)
    assert np.abs(got - expected).max() <= 1
    assert got[0, 3].tolist() == RGB[0, 3].tolist()


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, RGB), (1.0, PALETTE[LABEL_MAP])])
def test_the_ends_of_alpha_are_exact(alpha: float, expected: UInt8Array) -> None:
    drawn = LABEL_MAP != 255
    got = read_png(overlay_png(RGB, LABEL_MAP, PALETTE, alpha))
    assert (got[drawn] == expected[drawn]).all()


def test_white_on_white_does_not_overflow() -> None:
    white = np.full((2, 2, 3), 255, np.uint8)
    for alpha in np.linspace(0, 1, 33):
        got = read_png(
            overlay_png(
                white, np.zeros((2, 2), np.uint8), np.full((256, 3), 255, np.uint8), float(alpha)
            )
        )
        assert (got == 255).all()


def test_outlines_are_drawn_in_the_classes_colours() -> None:
    label_map = np.zeros((7, 8), np.uint8)
    label_map[:, 4:] = 2
    label_map[6] = 255
    rgb = street(7, 8)
    plain = read_png(overlay_png(rgb, label_map, PALETTE, 0.3))
    lined = read_png(overlay_png(rgb, label_map, PALETTE, 0.3, outlines=True))
    changed = np.zeros((7, 8), bool)
    changed[:6, 3:5] = True
    changed[5] = True
    assert (lined[changed] == PALETTE[label_map[changed]]).all()
    assert (lined[~changed] == plain[~changed]).all()


@pytest.mark.parametrize("outlines", [False, True])
def test_an_overlay_is_made_in_blocks_that_join_without_a_seam(
    outlines: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = street(23, 17)
    label_map = expected_label_map(rgb)
    label_map[5:9] = 255

    def drawn() -> UInt8Array:
        return read_png(overlay_png(rgb, label_map, PALETTE, 0.3, outlines=outlines))

    whole = drawn()
    monkeypatch.setattr(overlay, "_BLOCK_PX", 4 * 17)
    assert (drawn() == whole).all()
    monkeypatch.setattr(overlay, "_BLOCK_PX", 1)
    assert (drawn() == whole).all()


@given(seed=st.integers(0, 1000), height=st.integers(1, 9), width=st.integers(1, 9))
def test_any_colours_survive_the_png(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    label_map = rng.integers(0, 256, (height, width), np.uint8)
    palette = rng.integers(0, 256, (256, 3), np.uint8)
    assert (read_png(color_png(label_map, palette)) == palette[label_map]).all()
    assert (read_png(gray_png(label_map)) == label_map).all()
    with Image.open(io.BytesIO(gray_png(label_map))) as image:
        assert image.mode == "L"
        image.verify()  # the checksums


def test_json_counts_what_is_there() -> None:
    body = summary_json(
        LABEL_MAP,
        CONTRACT,
        model="tiny",
        version="7",
        timings=Timings(0.001, 0.002, 0.0305, 9.0),
        network_size=(1, 2),
    )
    assert json.loads(body) == {
        "model": "tiny",
        "version": "7",
        "height": 2,
        "width": 4,
        "network_height": 1,
        "network_width": 2,
        "classes": [
            {"id": 0, "name": "red", "color": [200, 30, 20], "pixels": 2, "share": 0.25},
            {"id": 1, "name": "green", "color": [10, 180, 40], "pixels": 2, "share": 0.25},
            {"id": 2, "name": "blue", "color": [5, 60, 220], "pixels": 3, "share": 0.375},
        ],
        "timings_ms": {"decode": 1.0, "queue": 2.0, "infer": 30.5},
    }


@pytest.mark.parametrize("named", [("green", "2"), ("1", "blue"), ("blue", "green", "2")])
def test_classes_are_kept_by_name_or_id(named: tuple[str, ...]) -> None:
    kept = select(LABEL_MAP, selected_ids(CONTRACT, named))
    assert kept.tolist() == [[255, 1, 2, 255], [2, 2, 255, 1]]
    assert [row["id"] for row in class_table(kept, CONTRACT)] == [1, 2], "no absent ones"
    assert select(LABEL_MAP, selected_ids(CONTRACT, ())) is LABEL_MAP, "all"


@pytest.mark.parametrize("name", ["purple", "3", "", "Red", "255"])
def test_an_unknown_class_is_named_with_those_there_are(name: str) -> None:
    with pytest.raises(InvalidParameter, match=rf"class '{name}' is not .*red, green, blue"):
        selected_ids(CONTRACT, ("red", name))


def test_every_output_is_found_and_described() -> None:
    found = all_outputs()
    assert list(found) == [
        "label_map",
        "color",
        "confidence",
        "json",
        "overlay",
        "polygons",
        "probabilities",
        "rle",
    ]
    assert [name for name, output in found.items() if output.needs_logits] == [
        "confidence",
        "probabilities",
    ]
    known = {field.name for field in fields(SegmentOptions)}
    assert {option for output in found.values() for option in output.options} <= known
    chosen = [output.media_type for output in found.values() if output.answers_media_type]
    assert len(chosen) == len(set(chosen)), "Accept would have to choose between two"


def test_an_unknown_output_names_the_known() -> None:
    with pytest.raises(InvalidParameter, match="no output 'mask': use label_map, color.* or rle"):
        output_named("mask")
