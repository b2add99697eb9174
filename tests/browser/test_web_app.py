"""docs/tutorials/web-app.md: its page, from an origin of its own, in Chromium."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import WAIT_MS
from tests.drawing import png, street
from tests.serving import Server, running
from tests.tiny_models import write_model
from tests.tutorials import saved_files

HEIGHT, WIDTH = 60, 90
KEPT_ORIGIN = "http://localhost:5173"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """Serves the folder as `python3 -m http.server` does, and gives its origin."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def my_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """The server, and the address of the tutorial's page, which asks it."""
    repository: Path = tmp_path_factory.mktemp("models")
    write_model(repository)
    folder: Path = tmp_path_factory.mktemp("my-app")
    page = saved_files("web-app")["index.html"]
    with (
        web_server(folder) as origin,
        running(repository, cors_origins=f"{KEPT_ORIGIN},{origin}") as server,
    ):
        (folder / "index.html").write_text(page.replace("http://localhost:8000", server.url))
        yield server, origin


@pytest.fixture
def opened(browser: Browser, my_app: tuple[Server, str]) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.goto(my_app[1])
    yield page
    context.close()


def choose(page: Page, content: bytes) -> None:
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": content})


def test_the_page_shows_classes_and_overlay(opened: Page) -> None:
    choose(opened, png(street(HEIGHT, WIDTH)))
    expect(opened.locator("#message")).to_have_text("Answered by tiny.")
    overlay = opened.locator("#overlay")
    assert overlay.evaluate("i => [i.naturalHeight, i.naturalWidth]") == [HEIGHT, WIDTH]
    shares = opened.locator("#classes li").all_inner_texts()
    assert {share.partition(":")[0] for share in shares} == {"red", "green", "blue"}
    assert sum(float(share.split()[-2]) for share in shares) == pytest.approx(100, abs=0.2)


def test_the_page_shows_what_is_wrong(opened: Page) -> None:
    choose(opened, b"no image at all")
    expect(opened.locator("#message")).to_contain_text("the body is not an image")


def test_a_page_of_another_origin_learns_nothing(
    opened: Page, my_app: tuple[Server, str], tmp_path: Path
) -> None:
    server, _ = my_app
    (tmp_path / "index.html").write_text("<!doctype html><title>a stranger</title>")
    with web_server(tmp_path) as stranger:
        opened.goto(stranger)
        learned = opened.evaluate(
            """url => fetch(url + "/v1/models").then(() => "all", () => "nothing")""", server.url
        )
    assert learned == "nothing"
