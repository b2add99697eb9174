"""The image enlarged and moved: by buttons, wheel, mouse, fingers and keys; and the outlines."""

from __future__ import annotations

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visit
from tests.browser.test_page import HEIGHT, IMAGE, LABELS, NAMES, WIDTH, canvas, give, segmented
from tests.drawing import png


@pytest.fixture
def done(desk: Visit) -> Page:
    give(desk.page, png(IMAGE))
    segmented(desk.page)
    return desk.page


def zoom(page: Page) -> int:
    return int(page.locator("#zoom-value").inner_text().removesuffix("%"))


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """A place on the screen, in fractions of the frame."""
    box = page.locator("#frame").bounding_box()
    assert box is not None
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def pixel(page: Page) -> tuple[int, int]:
    """The pixel of the image that the pointer is over, as the page says it."""
    said = page.locator("#readout").inner_text()
    x, y = said.rpartition(", at ")[2].split(" × ")
    assert said.startswith(NAMES[LABELS[int(y), int(x)]])
    return int(x), int(y)


def test_buttons(done: Page) -> None:
    expect(done.locator("#zoom-whole")).to_be_hidden()
    done.get_by_role("button", name="Larger").click()
    assert zoom(done) == 150
    done.get_by_role("button", name="Smaller").click()
    done.get_by_role("button", name="Smaller").click()
    assert zoom(done) == 100
    for _ in range(12):
        done.get_by_role("button", name="Larger").click()
    assert zoom(done) == 1600
    done.get_by_role("button", name="Whole").click()
    assert zoom(done) == 100


def test_the_wheel_with_ctrl_keeps_the_pixel_under_the_pointer(done: Page) -> None:
    done.mouse.move(*at(done, 0.755, 0.26))
    before = pixel(done)
    scrolled = done.evaluate("scrollY")
    done.keyboard.down("Control")
    for _ in range(3):
        done.mouse.wheel(0, -60)
    done.keyboard.up("Control")
    done.wait_for_function("document.querySelector('#zoom-value').innerText === '605%'")
    done.mouse.move(*at(done, 0.756, 0.26))
    x, y = pixel(done)
    assert abs(x - before[0]) <= 1 and abs(y - before[1]) <= 1
    assert done.evaluate("scrollY") == scrolled
    assert "pixels" in str(done.get_attribute("#frame", "class"))


def test_an_enlarged_image_is_moved_and_never_leaves_the_frame(done: Page) -> None:
    done.mouse.dblclick(*at(done, 0.5, 0.5))
    assert zoom(done) == 250
    done.mouse.move(*at(done, 0.5, 0.5))
    before = pixel(done)
    done.mouse.down()
    done.mouse.move(*at(done, 0.75, 0.5), steps=3)
    assert pixel(done) == before, "the pixel comes along"
    done.mouse.up()
    done.mouse.down()
    done.mouse.move(*at(done, 5, 0.5), steps=3)
    done.mouse.up()
    done.mouse.move(*at(done, 0.001, 0.5))
    assert pixel(done)[0] == 0
    done.mouse.dblclick(*at(done, 0.5, 0.5))
    assert zoom(done) == 100


def test_keys(done: Page) -> None:
    done.focus("#frame")
    done.keyboard.press("+")
    done.keyboard.press("+")
    assert zoom(done) == 225
    for _ in range(200):
        done.keyboard.press("ArrowRight")
    assert pixel(done)[0] == WIDTH - 1
    left = float(
        done.locator("#frame").evaluate("e => parseFloat(e.style.getPropertyValue('--x'))")
    )
    assert 0 < left <= 100, "what is read out is to be seen"
    done.keyboard.press("-")
    assert zoom(done) == 150
    done.keyboard.press("0")
    assert zoom(done) == 100


def test_the_wipe_stays_where_it_was_put(done: Page) -> None:
    done.locator("#wipe").fill("50")
    done.mouse.dblclick(*at(done, 0.2, 0.5))
    wiped = done.locator("#frame").evaluate("e => parseFloat(e.style.getPropertyValue('--wiped'))")
    # The point under the pointer, 20 %, stays; half of the frame is then at 20 + 30 / 2.5.
    assert wiped == pytest.approx(32, abs=0.5)


PINCH = """([from, to]) => {
  const frame = document.querySelector("#frame");
  const box = frame.getBoundingClientRect();
  const touch = (kind, id, x) => frame.dispatchEvent(new PointerEvent(kind, {
    pointerId: id, pointerType: "touch", bubbles: true, button: 0,
    clientX: box.left + x * box.width, clientY: box.top + box.height / 2,
  }));
  frame.setPointerCapture = () => {}; // no real pointer is down
  touch("pointerdown", 11, 0.5 - from / 2);
  touch("pointerdown", 12, 0.5 + from / 2);
  touch("pointermove", 11, 0.5 - to / 2);
  touch("pointermove", 12, 0.5 + to / 2);
  touch("pointerup", 11, 0.5);
  touch("pointerup", 12, 0.5);
}"""


def test_two_fingers(done: Page) -> None:
    done.evaluate(PINCH, [0.2, 0.6])
    assert zoom(done) == 300
    done.evaluate(PINCH, [0.6, 0.1])
    assert zoom(done) == 100


def test_another_image_is_seen_whole(done: Page) -> None:
    done.get_by_role("button", name="Larger").click()
    give(done, png(IMAGE[: HEIGHT // 2]), "half.png")
    expect(done.locator("#curl")).to_contain_text("half.png")
    assert zoom(done) == 100


def test_outlines_are_where_classes_meet(done: Page) -> None:
    expect(done.locator("#outlines")).to_be_hidden()
    done.get_by_label("Outlines").check()
    expect(done.locator("#outlines")).to_be_visible()
    drawn = canvas(done, "#outlines")
    each = drawn.shape[1] // WIDTH
    assert drawn.shape[:2] == (each * HEIGHT, each * WIDTH)
    labels = LABELS.repeat(each, 0).repeat(each, 1)
    ends = np.zeros(labels.shape, bool)
    ends[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    ends[:-1] |= labels[:-1] != labels[1:]
    white = (drawn == 255).all(axis=-1)
    np.testing.assert_array_equal(white, ends)
    beside = (drawn[..., 3] > 0) & ~white
    assert beside.any() and (drawn[beside][:, :3] == 0).all(), "edged in black"

    done.get_by_role("button", name="blue").click()
    done.get_by_role("button", name="green").click()
    done.get_by_role("button", name="red").click()
    assert (canvas(done, "#outlines")[..., 3] == 0).all(), "nothing is shown, nothing is outlined"
    done.get_by_label("Outlines").uncheck()
    expect(done.locator("#outlines")).to_be_hidden()
