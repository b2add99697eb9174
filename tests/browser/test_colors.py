"""The page's colours for classes can be told apart, also by the colour-blind, on light and dark."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import SAFE, Visit
from tests.browser.test_page import IMAGE, LABELS, PALETTE, canvas, give, segmented
from tests.drawing import png
from tests.tiny_models import CLASSES

Floats = npt.NDArray[np.float64]

SEEN = {
    "everybody": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""Linear RGB -> linear RGB. Source: Machado, Oliveira and Fernandes 2009, severity 1."""


def linear(rgb: npt.NDArray[np.uint8]) -> Floats:
    """Source: IEC 61966-2-1 (sRGB)."""
    value = rgb / 255.0
    result: Floats = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return result


def oklab(light: Floats) -> Floats:
    """Linear RGB [N,3] -> lightness and two axes of colour. Source: Ottosson 2020, Oklab."""
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    result: Floats = np.cbrt(light.clip(0, 1) @ to_lms.T) @ to_lab.T
    return result


def nearest(count: int, eyes: str) -> float:
    """How far apart the two most alike of the first colours are; 1 is black to white."""
    lab = oklab(linear(SAFE[:count]) @ np.array(SEEN[eyes]).T)
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1)
    return float(apart[~np.eye(count, dtype=bool)].min())


@pytest.mark.parametrize("eyes", SEEN)
def test_colors_are_far_apart(eyes: str) -> None:
    """A just noticeable difference is about 0.02."""
    assert nearest(12, eyes) > 0.1
    assert nearest(len(SAFE), eyes) > 0.05


def test_none_is_lost_on_a_page(desk: Visit) -> None:
    """No color is as dark as the dark page, or as light as the light one."""
    for scheme in ("light", "dark"):
        desk.page.emulate_media(color_scheme=scheme)
        sheet = desk.page.evaluate(
            "getComputedStyle(document.querySelector('.panels section')).backgroundColor"
        )
        ground = np.array([[int(part) for part in sheet[4:-1].split(",")]], np.uint8)
        apart = np.linalg.norm(oklab(linear(SAFE)) - oklab(linear(ground)), axis=-1)
        assert apart.min() > 0.1, (scheme, SAFE[apart.argmin()])


def choose(page: Page, kind: str) -> None:
    page.select_option("#palette", value=kind)


def test_the_data_sets_colors_can_be_had(desk: Visit) -> None:
    page = desk.page
    give(page, png(IMAGE))
    segmented(page)
    theirs = np.array([info.color for info in CLASSES], np.uint8)
    for kind, colors in ("data", theirs), ("safe", PALETTE):
        choose(page, kind)
        np.testing.assert_array_equal(canvas(page, "#classes")[..., :3], colors[LABELS])
        swatch = page.locator("#legend li[data-id='2'] .swatch")
        expect(swatch).to_have_css("background-color", f"rgb{tuple(colors[2].tolist())}")


def test_classes_keep_their_color_and_background_takes_none(desk: Visit) -> None:
    found = desk.page.evaluate(
        """async () => {
          const { Classes } = await import("/web/js/classes.js");
          const info = (name, id) => ({ id, name, color: [id, 0, 0] });
          const name = (id) => (id ? `c${id}` : "background");
          const many = Array.from({ length: 60 }, (_, id) => info(name(id), id));
          const classes = new Classes(many);
          return many.map(({ id }) => classes.colors.get(id));
        }"""
    )
    assert found[0] not in SAFE.tolist()
    for begin in 1, 25:
        taken = {tuple(color) for color in found[begin : begin + len(SAFE)]}
        assert len(taken) == len(SAFE), "all are taken before one is taken again"
