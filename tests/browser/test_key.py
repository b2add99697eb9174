"""The page with a server that wants an API key: asked for, kept in the tab, sent to nobody else."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Visit
from tests.browser.test_page import IMAGE, give, segmented
from tests.conftest import need
from tests.drawing import png

KEY = "s3cret-0_key"
PROBLEM = {"type": "urn:fcn:problem:not-authenticated", "title": "Not authenticated", "status": 401}


@pytest.fixture
def locked(wide: Visit) -> Iterator[Visit]:
    """Answers as a server with keys: 401 to all but its pages. Its words are in docs/api.md."""
    page = wide.page
    sent: list[str] = []

    def gate(route: Route) -> None:
        value = route.request.header_value("authorization") or ""
        sent.append(value)
        if value == f"Bearer {KEY}":
            route.continue_()
            return
        route.fulfill(
            status=401,
            content_type="application/problem+json",
            headers={"WWW-Authenticate": "Bearer"},
            body=json.dumps(PROBLEM | {"detail": "send the key"}),
        )

    for address in ("/v1/**", "/segment*"):
        page.route(wide.url + address, gate)
    page.add_init_script("window.askedBefore = !!sessionStorage.getItem('fcn-api-key')")
    wide.forget()
    page.goto(wide.url + "/")
    yield wide
    page.evaluate("sessionStorage.clear()")
    page.unroute_all()
    assert wide.outside == [] and wide.complaints == []
    # A browser's own dialog for passwords belongs to Basic; ours is the only one.
    assert all(value == "" or value.startswith("Bearer ") for value in sent)


def unlock(page: Page, key: str = KEY) -> None:
    expect(page.get_by_role("dialog", name="API key")).to_be_visible()
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")


def test_the_key_is_asked_for_and_used(locked: Visit, tmp_path: Path) -> None:
    page = locked.page
    unlock(page, "wrong")
    expect(page.locator("#key-why")).to_have_text("The server did not take that key.")
    unlock(page, "two words")
    expect(page.locator("#key-why")).to_contain_text("no spaces")
    unlock(page)
    page.wait_for_selector("#about div")
    expect(page.locator("#key-dialog")).to_be_hidden()
    give(page, png(IMAGE))
    segmented(page)

    command = page.inner_text("#curl")
    assert '-H "Authorization: Bearer $FCN_API_KEY"' in command
    assert KEY not in page.content()
    expect(page.locator("#curl-key")).to_be_visible()
    need(shutil.which("curl") is not None, "curl")
    (tmp_path / "street.png").write_bytes(png(IMAGE))
    ran = subprocess.run(
        ["sh", "-ec", command.replace("curl ", "curl --trace-ascii sent.txt ", 1)],
        cwd=tmp_path,
        env={"FCN_API_KEY": KEY, "PATH": "/usr/bin:/bin"},
        check=True,
        timeout=30,
    )
    assert ran.returncode == 0 and (tmp_path / "street.label_map.png").exists()
    assert f"Authorization: Bearer {KEY}" in (tmp_path / "sent.txt").read_text()

    page.reload()  # the tab remembers
    page.wait_for_selector("#about div")
    assert page.evaluate("window.askedBefore")
    assert page.evaluate("localStorage.length") == 0 and page.evaluate("document.cookie") == ""
    give(page, png(IMAGE))
    segmented(page)
    page.get_by_role("button", name="Forget the key").click()
    expect(page.locator("#curl-key")).to_be_hidden()
    expect(page.locator("#curl")).not_to_contain_text("Authorization")
    page.click("[data-output=color]")
    unlock(page)
    expect(page.locator("#downloads-note")).to_have_text("Saved street.color.png.")


def test_who_has_no_key_is_told_so(locked: Visit) -> None:
    page = locked.page
    expect(page.locator("#key-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert").first).to_contain_text(
        "This server answers those who have a key"
    )
    give(page, png(IMAGE))
    expect(page.locator("#problem")).to_contain_text("This page knows no model: reload it.")
    page.reload()
    unlock(page)
    page.wait_for_selector("#about div")
