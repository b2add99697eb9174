"""Swagger UI at /docs: what "Try it out" answers with can be seen."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Visit
from tests.drawing import png, street

HEIGHT, WIDTH = 30, 50
SLOW_MS = 120_000
"""Swagger UI writes out all of an operation when it is opened, which takes a busy machine long."""


@pytest.mark.parametrize("output", ["label_map", "overlay"])
def test_try_it_out_shows_the_image(api_page: Visit, output: str) -> None:
    page = api_page.page
    operation = page.locator("#operations-Segmentation-segment")
    operation.locator(".opblock-summary-control").click(timeout=SLOW_MS)
    operation.get_by_role("button", name="Try it out").click(timeout=SLOW_MS)
    operation.locator("tr[data-param-name=output] select").select_option(output)
    operation.locator("input[type=file]").set_input_files(
        {"name": "street.png", "mimeType": "image/png", "buffer": png(street(HEIGHT, WIDTH))}
    )
    operation.get_by_role("button", name="Execute").click(timeout=SLOW_MS)
    image = operation.locator(".live-responses-table img")
    expect(image).to_be_visible(timeout=SLOW_MS)
    page.wait_for_function("image => image.complete", arg=image.element_handle())
    size = image.evaluate("image => [image.naturalHeight, image.naturalWidth]")
    assert size == [HEIGHT, WIDTH], "the policy of the page must allow blob: images"


def test_operations_are_in_groups(api_page: Visit) -> None:
    page = api_page.page
    expect(page.locator(".opblock-tag").first).to_be_visible()
    tags = page.locator(".opblock-tag").evaluate_all("all => all.map(tag => tag.dataset.tag)")
    assert tags[:3] == ["Segmentation", "Models", "Server"]
