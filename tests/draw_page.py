"""Draws docs/figures/page-*.jpg: the web page with the shipped models and the sample images.

`python -m tests.draw_page`: it takes half a minute, and wants Chromium.
"""

from __future__ import annotations

import io
import shutil
import time
from typing import Final, Literal

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from tests.drawing import jpeg, street
from tests.serving import ROOT, Server, running

FOLDER: Final = ROOT / "docs" / "figures"
STREETS, HOUSES = "camvid-fcn8s-mobilenet_v1", "facade-fcn4s-mobilenet_v1"
ANIMALS: Final = "voc_animals-fcn8s-efficientnet_lite0"
SIZES: Final = {"desk": (1280, 655), "status": (1280, 1120), "phone": (375, 812)}
IMAGES: Final = 100
OWN_SIZE: Final = {"scale": "none"}
"""Small images stay small: the machine that draws this may be busy."""

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


def segmented(page: Page, sample: str, model: str) -> None:
    page.wait_for_selector("#about div")
    page.select_option("#model", label=model)
    page.get_by_role("button", name=f"Try: {sample}").click()
    page.wait_for_selector("body[data-state=done]")


def save(page: Page, name: str) -> None:
    page.evaluate("scrollTo(0, 0)")  # what was used last may have been further down
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").save(FOLDER / f"page-{name}.jpg", quality=86)


def main() -> None:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with (
        running(ROOT / "model_repository", intra_op_threads=2) as server,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser,
    ):
        page = opened(browser, server, "/", "desk", "light")
        segmented(page, "a street", STREETS)
        save(page, "street")
        page = opened(browser, server, "/", "desk", "dark")
        segmented(page, "a house", HOUSES)
        page.get_by_label("Outlines").check()
        save(page, "house")
        page = opened(browser, server, "/", "desk", "light")
        segmented(page, "a meadow", ANIMALS)
        save(page, "meadow")
        page = opened(browser, server, "/", "phone", "dark")
        segmented(page, "a street", STREETS)
        save(page, "phone")

        page = opened(browser, server, "/status", "status", "light")
        for number in range(IMAGES):
            image = jpeg(street(60 + number % 90, 150, seed=number))
            server.rest.post("/segment", params=OWN_SIZE, content=image).raise_for_status()
            time.sleep(0.1)
        page.wait_for_selector("#past polyline")
        save(page, "status")


if __name__ == "__main__":
    main()
