"""A real Chromium and a real server, one of each per module; every visit is watched.

Per module, not per session: Playwright's loop runs in the main thread until it is closed, and the
asyncio tests of other folders need that thread.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from service.api.http.page import FOLDER
from tests.conftest import need
from tests.serving import Server, running
from tests.tiny_models import write_model

MAX_IMAGE_BYTES = 200_000
TARGET_S = 0.25
"""Not the default, so that a page which knows that by heart is found out."""
WAIT_MS = 20_000
_COLORS = re.findall(r"\[(\d+), (\d+), (\d+)\],\n", (FOLDER / "js" / "colors.js").read_text())
SAFE = np.array(_COLORS, np.uint8)
"""uint8 [N,3], the colours of the page for classes, in their order."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves `tiny` (version 2 favours green) and `other` (blue); `tiny` is the default."""
    repository: Path = tmp_path_factory.mktemp("models")
    write_model(repository, "tiny", 1, bias=(0, 300, 0))
    write_model(repository, "tiny", 2)
    write_model(repository, "other", 1, bias=(0, 0, 300), logits=True)
    (repository / "other" / "model.toml").write_text('description = "Blue things"\n')
    with running(
        repository,
        default_model="tiny",
        max_image_bytes=MAX_IMAGE_BYTES,
        latency_target_s=TARGET_S,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """With a camera that films a drawing of its own, and the permission to use it."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    need(path is not None, "Chromium (on Debian and Ubuntu, apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",  # CI is root, in a container
                "--disable-gpu",  # there is none
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
            ],
        )
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page and what it did. refused: addresses answered with an error, relative to the server.

    complaints: messages of the console, and exceptions nobody caught. outside: requests to others.
    """

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def watch(self) -> None:
        def said(kind: str, text: str) -> None:
            # The console repeats every answer that is an error; those are in `refused`.
            if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
                self.complaints.append(text)

        def asked(url: str) -> None:
            if not url.startswith((self.url, "blob:", "data:")):
                self.outside.append(url)

        def answered(url: str, status: int) -> None:
            if status >= 400:
                self.refused.append(url.removeprefix(self.url))

        self.page.on("console", lambda message: said(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: asked(request.url))
        self.page.on("response", lambda reply: answered(reply.url, reply.status))

    def forget(self) -> None:
        for seen in (self.complaints, self.outside, self.refused):
            seen.clear()


@contextmanager
def tab(browser: Browser, server: Server, *, phone: bool = False) -> Iterator[Visit]:
    """A tab for several tests: a new one would cost each of them a process of Chromium's."""
    size = (360, 740) if phone else (1280, 800)
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        has_touch=phone,
        is_mobile=phone,
        permissions=["clipboard-read", "clipboard-write"],
    )
    context.set_default_timeout(WAIT_MS)
    seen = Visit(context.new_page(), server.url)
    seen.watch()
    yield seen
    context.close()


@contextmanager
def opened(seen: Visit, address: str) -> Iterator[Visit]:
    """A visit; at its end, nothing may have come from outside or been complained of."""
    seen.page.emulate_media(color_scheme="null", reduced_motion="null")
    seen.forget()
    seen.page.goto(seen.url + address)
    yield seen
    seen.page.unroute_all()
    assert seen.outside == []
    assert seen.complaints == []


@pytest.fixture(scope="module")
def wide(browser: Browser, server: Server) -> Iterator[Visit]:
    with tab(browser, server) as seen:
        yield seen


@pytest.fixture
def desk(wide: Visit) -> Iterator[Visit]:
    """The page in a wide window, its models listed."""
    with opened(wide, "/") as seen:
        seen.page.wait_for_selector("#about div")
        yield seen


@pytest.fixture
def phone(browser: Browser, server: Server) -> Iterator[Visit]:
    """The page on a phone 360 pixels wide."""
    with tab(browser, server, phone=True) as narrow, opened(narrow, "/") as seen:
        seen.page.wait_for_selector("#about div")
        yield seen


@pytest.fixture
def api_page(wide: Visit) -> Iterator[Visit]:
    """Swagger UI at /docs."""
    with opened(wide, "/docs") as seen:
        yield seen
