"""The web page for everybody: keyboard, screen reader, phone, dark; and from nowhere else."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any, Literal

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Visit
from tests.browser.test_page import HEIGHT, IMAGE, LABELS, NAMES, WIDTH, give, segmented
from tests.drawing import png, png_file


def tab_to(page: Page, selector: str, most: int = 40) -> None:
    """Presses Tab until the element has the focus, and sees that it shows."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", f"{selector} has the focus, and nothing shows it"
            return
    pytest.fail(f"Tab does not lead to {selector}")


def test_keyboard_alone(desk: Visit) -> None:
    page = desk.page
    page.on("filechooser", lambda _: None)  # before it is needed: Chromium must be told, too
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    tab_to(page, "#choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "s.png", "mimeType": "image/png", "buffer": png(IMAGE)})
    segmented(page)
    tab_to(page, "#opacity")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#opacity-value")).to_have_text("59%")
    tab_to(page, "#legend button")
    page.keyboard.press("Space")
    expect(page.locator("#legend button").first).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Space")

    tab_to(page, "#frame")
    x, y, step = WIDTH // 2, HEIGHT // 2, WIDTH // 50
    for key, dx, dy in (
        ("ArrowRight", step, 0),
        ("ArrowUp", 0, -step),
        ("Shift+ArrowLeft", -1, 0),
        ("Shift+ArrowDown", 0, 1),
        *(("ArrowUp", 0, -step),) * 40,
    ):
        page.keyboard.press(key)
        x, y = x + dx, max(0, y + dy)
    expect(page.locator("#readout")).to_have_text(f"{NAMES[LABELS[y, x]]}, at {x} × {y}")
    assert y == 0
    page.keyboard.press("Escape")
    expect(page.locator("#cursor")).to_be_hidden()


def test_names_and_roles(desk: Visit) -> None:
    page = desk.page
    give(page, png(IMAGE))
    segmented(page)
    named: list[tuple[Any, str]] = [
        ("combobox", "Model"),
        ("slider", "Opacity"),
        ("slider", "Before / after"),
        ("application", "Segmented image"),
        ("button", "Choose images"),
        ("button", "Use the camera"),
        ("button", "Label map"),
        ("region", "Classes"),
        ("region", "Server time"),
        ("heading", "FCN Serve"),
    ]
    for role, name in named:
        assert page.get_by_role(role, name=name).count() == 1, (role, name)
    assert page.get_attribute("html", "lang") == "en"
    assert page.get_attribute("#readout", "aria-live") == "polite"
    ids = page.locator("[id]").evaluate_all("all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    nameless = page.locator("button, input, select").evaluate_all(
        "all => all.filter(e => !(e.innerText || e.ariaLabel || e.labels?.length)).map(e => e.id)"
    )
    assert nameless == []
    assert page.locator("img:not([alt])").count() == 0
    described = page.get_attribute("#frame", "aria-describedby")
    expect(page.locator(f"#{described}")).to_contain_text("Arrow keys")


def test_nothing_moves_where_less_motion_is_asked_for(desk: Visit) -> None:
    page = desk.page
    page.evaluate("document.body.dataset.state = 'busy'")
    moving = "getComputedStyle(document.querySelector('.busy')).animationName"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) == "passing"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moving) == "none"


def luminance(color: str) -> float:
    """Source: WCAG 2.2, relative luminance."""
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(desk: Visit, scheme: Literal["light", "dark"]) -> None:
    """At least 4.5 to 1 for text. Source: WCAG 2.2, success criterion 1.4.3."""
    desk.page.emulate_media(color_scheme=scheme)

    def value(name: str) -> float:
        color = desk.page.evaluate(
            f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
        )
        return luminance("#" + "".join(2 * c for c in color[1:]) if len(color) == 4 else color)

    pairs = [
        (text, back) for text in ("ink", "soft", "accent", "late") for back in ("paper", "sheet")
    ]
    for text, back in [*pairs, ("on-accent", "accent"), ("ink", "sunken")]:
        low, high = sorted((value(text), value(back)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, back)


def test_a_phone_scrolls_one_way(phone: Visit) -> None:
    page = phone.page

    def overflow() -> int:
        return int(page.evaluate("document.documentElement.scrollWidth - innerWidth"))

    assert overflow() <= 0
    expect(page.locator(".with-mouse")).to_be_hidden()
    give(page, b"no", "a-very-long-name-of-an-image-that-does-not-break.png")
    expect(page.get_by_role("alert")).to_be_visible()
    assert overflow() <= 0
    give(page, png(IMAGE), "a-very-long-name-of-an-image-that-does-not-break.png")
    segmented(page)
    assert overflow() <= 0
    page.locator("#frame").tap(position={"x": 20, "y": 20}, force=True)
    expect(page.locator("#tag")).to_be_visible()
    small = page.locator("button:visible:not(.plain), select").evaluate_all(
        "all => all.filter(e => e.getBoundingClientRect().height < 44).map(e => e.innerText)"
    )
    assert small == []


def test_the_policy_keeps_the_page_at_home(desk: Visit) -> None:
    """The browser itself refuses what is not from here."""
    refused = desk.page.evaluate(
        """async () => {
          const told = new Promise(done => addEventListener("securitypolicyviolation",
            event => done(event.violatedDirective), {once: true}));
          await fetch("http://127.0.0.1:9/").catch(() => {});
          return await told;
        }"""
    )
    assert refused == "connect-src"
    assert all("Content Security Policy" in text for text in desk.complaints)
    desk.complaints.clear()


def test_swagger_ui_comes_from_here(api_page: Visit) -> None:
    page = api_page.page
    expect(page.locator(".opblock-summary-path").first).to_be_visible()
    paths = page.locator(".opblock-summary-path").all_inner_texts()
    assert any("/segment" in path.replace("\u200b", "") for path in paths)
    page.locator(".opblock-summary-control").first.click()
    expect(page.locator(".opblock-body").first).to_be_visible()
    assert api_page.refused == []


def filtered(ids: np.ndarray[tuple[int, int], np.dtype[np.uint8]], filters: list[int]) -> bytes:
    """An 8-bit palette PNG whose rows take turns with the filters. Source: PNG, section 9."""
    samples = ids.astype(int)
    left, above, corner = (np.zeros_like(samples) for _ in range(3))
    left[:, 1:], above[1:], corner[1:, 1:] = samples[:, :-1], samples[:-1], samples[:-1, :-1]
    guess = left + above - corner
    near = np.stack([abs(guess - other) for other in (left, above, corner)]).argmin(axis=0)
    paeth = np.choose(near, [left, above, corner])
    predictions = [np.zeros_like(samples), left, above, (left + above) // 2, paeth]
    rows = b"".join(
        bytes([kind]) + ((samples[y] - predictions[kind][y]) % 256).astype(np.uint8).tobytes()
        for y in range(len(samples))
        for kind in [filters[y % len(filters)]]
    )
    data = zlib.compress(rows)
    # Every class is black: colours cannot tell them apart.
    chunks = [(b"PLTE", bytes(768)), (b"IDAT", data[:7]), (b"IDAT", data[7:])]
    return png_file(*ids.shape, 8, 3, *chunks)


READ = """async body => {
  const {readIds} = await import("/web/js/png.js");
  const bytes = Uint8Array.from(atob(body), c => c.charCodeAt(0));
  try {
    const {width, height, ids} = await readIds(new Blob([bytes]));
    return {width, height, ids: [...ids]};
  } catch (error) { return error.message; }
}"""


def test_label_maps_of_every_filter_are_read(desk: Visit) -> None:
    ids = np.random.default_rng(0).integers(0, 256, (9, 13), np.uint8)
    for filters in [0], [1], [2], [3], [4], [4, 3, 2, 1, 0]:
        body = base64.b64encode(filtered(ids, filters)).decode()
        read = desk.page.evaluate(READ, body)
        assert (read["height"], read["width"]) == ids.shape
        assert read["ids"] == ids.ravel().tolist(), filters


def test_what_is_no_label_map_is_refused(desk: Visit) -> None:
    good = filtered(np.zeros((4, 4), np.uint8), [0])
    for body, reason in (
        (b"GIF89a", "not a PNG"),
        (png(IMAGE), "no label map: depth 8, colour type 2"),
        (good.replace(struct.pack(">II", 4, 4), struct.pack(">II", 4, 5)), "cut short"),
    ):
        assert reason in desk.page.evaluate(READ, base64.b64encode(body).decode())
