"""axe-core finds nothing to complain of, on any page, in any state, in any colours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Visit, opened, tab
from tests.browser.test_page import IMAGE, give, segmented
from tests.browser.test_several import give_all
from tests.drawing import png
from tests.serving import Server

Scheme = Literal["light", "dark"]


def complaints(page: Page) -> list[str]:
    found: Any = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html']}" for one in found for node in one["nodes"]]


@pytest.fixture(params=["desk", "phone"])
def anywhere(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Visit]:
    with tab(browser, server, phone=request.param == "phone") as seen, opened(seen, "/"):
        seen.page.wait_for_selector("#about div")
        yield seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page(anywhere: Visit, scheme: Scheme) -> None:
    page = anywhere.page
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    assert complaints(page) == []
    give(page, b"no image", "notes.png")
    expect(page.get_by_role("alert").first).to_be_visible()
    assert complaints(page) == []
    give_all(page)
    segmented(page)
    expect(page.locator("#album-title")).to_have_text("3 of 4 images, 1 failed")
    page.get_by_label("Outlines").check()
    page.get_by_role("button", name="Larger").click()
    page.locator("#legend button").first.click()
    assert complaints(page) == []
    page.route("**/segment*", lambda route: None)
    give(page, png(IMAGE))
    page.get_by_role("button", name="Cancel").wait_for()
    assert complaints(page) == []
    page.click("#progress-cancel")
    page.click("#camera")
    page.wait_for_function("() => document.querySelector('#camera-video').videoWidth > 0")
    assert complaints(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_status_page(wide: Visit, scheme: Scheme) -> None:
    with opened(wide, "/status") as seen:
        seen.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        seen.page.wait_for_selector("#model-rows tr")
        assert complaints(seen.page) == []
        seen.page.route("**/metrics", lambda route: route.fulfill(status=503, body="no"))
        expect(seen.page.get_by_role("alert")).to_be_visible()
        assert complaints(seen.page) == []
        seen.page.unroute_all()


def test_a_violation_is_noticed(wide: Visit) -> None:
    with opened(wide, "/") as seen:
        seen.page.evaluate("document.querySelector('#model').labels[0].remove()")
        assert [text.partition(":")[0] for text in complaints(seen.page)] == ["select-name"]


def test_high_contrast_keeps_the_colors_that_mean_something(desk: Visit) -> None:
    page = desk.page
    give(page, png(IMAGE))
    segmented(page)
    colors = """() => ["#legend .swatch", "#legend .amount", "#stages span"].map(
      s => getComputedStyle(document.querySelector(s)).backgroundColor)"""
    before = page.evaluate(colors)
    page.emulate_media(forced_colors="active")
    assert page.evaluate("matchMedia('(forced-colors: active)').matches")
    assert page.evaluate(colors) == before
    assert complaints(page) == []
    page.emulate_media(forced_colors="null")
