"""The camera live: image after image, at the server's pace."""

from __future__ import annotations

import json

from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Visit
from tests.browser.test_page import IMAGE, give, segmented
from tests.drawing import png


def start(page: Page) -> None:
    page.click("#camera")
    page.wait_for_function("() => document.querySelector('#camera-video').videoWidth > 0")
    page.get_by_role("button", name="Segment live").click()
    expect(page.locator("#camera-dialog")).to_be_hidden()


def test_images_follow_each_other_until_it_is_stopped(desk: Visit) -> None:
    page = desk.page
    at_once: list[int] = [0, 0]  # now, at most

    def asked(route: Route) -> None:
        at_once[0] += 1
        at_once[1] = max(at_once)
        reply = route.fetch()
        at_once[0] -= 1
        route.fulfill(response=reply)

    page.route("**/segment*", asked)
    start(page)
    page.wait_for_selector("body[data-state=live]")
    expect(page.locator("#progress-text")).to_contain_text("images a second")
    expect(page.locator("#timing-total")).to_contain_text(" of ")
    row = page.locator("#legend button").first
    row.click()  # rows stay where they are while shares change
    expect(row).to_have_attribute("aria-pressed", "false")
    row.click()
    expect(row).to_have_attribute("aria-pressed", "true")
    with page.expect_request("**/segment*"), page.expect_response("**/segment*"):
        pass  # they go on
    assert at_once[1] == 1, "one is on its way at a time"
    page.get_by_role("button", name="Stop").click()
    segmented(page)
    expect(page.locator("#curl")).to_contain_text("@camera.jpg")
    expect(page.locator("#progress")).to_be_hidden()
    page.unroute_all()


def test_a_full_server_is_waited_for(desk: Visit) -> None:
    page = desk.page
    refusals: list[Route] = []

    def full_once(route: Route) -> None:
        if refusals:
            route.continue_()
            return
        refusals.append(route)
        problem = {"title": "Overloaded", "detail": "try again", "request_id": "x"}
        route.fulfill(status=429, headers={"Retry-After": "1"}, body=json.dumps(problem))

    page.route("**/segment*", full_once)
    start(page)
    page.wait_for_selector("body[data-state=live]")
    assert refusals
    expect(page.locator("#problem")).to_be_hidden()
    page.unroute_all()
    give(page, png(IMAGE), "chosen.png")  # ends it, too
    expect(page.locator("#curl")).to_contain_text("@chosen.png")
    segmented(page)
    expect(page.locator("#progress")).to_be_hidden()


def test_an_error_ends_it(desk: Visit) -> None:
    page = desk.page
    page.route("**/segment*", lambda route: route.fulfill(status=500, body="out of order"))
    start(page)
    expect(page.get_by_role("alert").first).to_contain_text("Error 500")
    expect(page.locator("#progress")).to_be_hidden()
