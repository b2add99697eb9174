"""Draws docs/figures/page-*.jpg: the web page with the shipped models and the sample images.

`python -m tests.draw_page`: it takes half a minute, and wants Chromium.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Final, Literal

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.serving import ROOT, Server, running

FOLDER: Final = ROOT / "docs" / "figures"
FACADE: Final = "facade-fcn4s-mobilenet_v1"
SIZES: Final = {"desk": (1280, 940), "tablet": (768, 1024), "phone": (375, 812)}
LIGHT: Final = "light"

Scheme = Literal["light", "dark"]


def opened(browser: Browser, server: Server, path: str, size: str, scheme: Scheme) -> Page:
    width, height = SIZES[size]
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
        is_mobile=size == "phone",
        has_touch=size == "phone",
    )
    page.goto(server.url + path)
    return page


def street(page: Page) -> None:
    page.get_by_role("button", name="Try: a street").click()
    page.wait_for_selector("body[data-state=done]")


def house(page: Page) -> None:
    page.select_option("#model", label=FACADE)
    page.get_by_role("button", name="Try: a house").click()
    page.wait_for_selector("body[data-state=done]")


def outlined(page: Page) -> None:
    page.get_by_label("Outlines").check()


def save(page: Page, path: Path, *, whole: bool = False) -> None:
    with Image.open(io.BytesIO(page.screenshot(full_page=whole))) as image:
        image.convert("RGB").save(path, quality=86)


def main(folder: Path = FOLDER) -> None:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with (
        running(ROOT / "model_repository") as server,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser,
    ):
        for name, size, scheme in (
            ("page-street", "desk", "light"),
            ("page-phone", "phone", "dark"),
        ):
            page = opened(browser, server, "/", size, scheme)  # type: ignore[arg-type]
            street(page)
            save(page, folder / f"{name}.jpg")
        page = opened(browser, server, "/", "desk", "dark")
        house(page)
        outlined(page)
        save(page, folder / "page-house.jpg")
        image = (ROOT / "service" / "web" / "samples" / "street.jpg").read_bytes()
        for _ in range(120):
            server.rest.post("/segment", content=image).raise_for_status()
        page = opened(browser, server, "/status", "desk", "light")
        page.wait_for_selector("#past polyline")
        save(page, folder / "page-status.jpg")


if __name__ == "__main__":
    main()
