"""An overlay leaves the background as it is in the image, unless it is asked for by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model.contract import ClassInfo, Contract
from service.core.outputs.overlay import overlay_png
from service.core.outputs.registry import Encoder
from service.core.types import SegmentOptions, Timings
from tests.drawing import UInt8Array, read_png, street
from tests.tiny_models import contract

BLACK = (0, 0, 0)
CAT, DOG = ClassInfo(1, "cat", (200, 30, 20)), ClassInfo(2, "dog", (10, 180, 40))
RGB = street(7, 8)
LABELS = np.zeros((7, 8), np.uint8)
LABELS[:3, 2:5] = 1
LABELS[3:5, :5] = 2
LABELS[6] = 255


def with_background(name: str = "background", color: tuple[int, int, int] = BLACK) -> Contract:
    return replace(contract(), classes=(ClassInfo(0, name, color), CAT, DOG))


def drawn(said: Contract, output: str = "overlay", *classes: str, **options: bool) -> UInt8Array:
    wanted = SegmentOptions(output=output, alpha=1.0, classes=classes, **options)  # type: ignore[arg-type]
    encoder = Encoder(wanted, said, said.palette(), model="tiny", version="1")
    return read_png(encoder.encode(RGB, LABELS, None, Timings()))


@pytest.mark.parametrize(
    "said", [with_background(), with_background("_background_", (90, 90, 90)), with_background("x")]
)
@pytest.mark.parametrize("classes", [(), ("cat", "dog")])
def test_the_background_is_left_alone(said: Contract, classes: tuple[str, ...]) -> None:
    shown = drawn(said, "overlay", *classes)
    things = np.isin(LABELS, (1, 2))
    assert (shown[~things] == RGB[~things]).all()
    assert (shown[things] == said.palette()[LABELS[things]]).all()


@pytest.mark.parametrize("name", ["background", "0"])
def test_one_that_is_asked_for_is_drawn(name: str) -> None:
    said = with_background(color=(90, 90, 90))
    shown = drawn(said, "overlay", name, "cat")
    kept = np.isin(LABELS, (0, 1))
    assert (shown[kept] == said.palette()[LABELS[kept]]).all()
    assert (shown[~kept] == RGB[~kept]).all()


def test_class_0_is_drawn_where_another_is_the_background_or_it_has_a_colour() -> None:
    elsewhere = replace(
        contract(), classes=(ClassInfo(0, "road", BLACK), CAT, replace(DOG, name="background"))
    )
    shown = drawn(elsewhere)
    assert (shown[LABELS == 0] == 0).all()
    assert (shown[LABELS == 2] == RGB[LABELS == 2]).all()
    plain = with_background("road", (1, 2, 3))
    assert (drawn(plain)[LABELS == 0] == (1, 2, 3)).all()


def test_it_has_no_border_of_its_own() -> None:
    rgb, palette = RGB, with_background().palette()
    shown = read_png(overlay_png(rgb, LABELS, palette, 0.0, outlines=True, background=0))
    changed = (shown != rgb).any(-1)
    assert changed[np.isin(LABELS, (1, 2))].any()
    assert not changed[LABELS == 0].any()


def test_other_outputs_have_it() -> None:
    said = with_background(color=(90, 90, 90))
    assert (drawn(said, "color")[LABELS == 0] == (90, 90, 90)).all()
    assert (drawn(said, "label_map") == LABELS).all()
