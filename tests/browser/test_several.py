"""Several images; and one that takes its time: seen at once, followed, cancelled, tried again."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from playwright.sync_api import FilePayload, Page, expect

from tests.browser.conftest import Visit
from tests.browser.test_page import HEIGHT, IMAGE, NAMES, WIDTH, canvas, give, segmented
from tests.drawing import png, street
from tests.tiny_models import expected_label_map

STREETS = {f"street-{n}.png": street(HEIGHT, WIDTH, seed=n) for n in range(3)}


def give_all(page: Page, more: dict[str, bytes] | None = None) -> None:
    files = {name: png(image) for name, image in STREETS.items()} | (more or {})
    page.set_input_files(
        "#file",
        [FilePayload(name=name, mimeType="image/png", buffer=body) for name, body in files.items()],
    )


def test_several_images_become_a_list(desk: Visit, tmp_path: Path) -> None:
    page = desk.page
    give_all(page, {"notes, old.png": b"not an image"})
    expect(page.locator("#album-title")).to_have_text("3 of 4 images, 1 failed")
    rows = page.locator("#album-list li")
    assert rows.locator(".name").all_inner_texts() == [*STREETS, "notes, old.png"]
    expect(rows.locator("canvas")).to_have_count(3)
    expect(rows.last).to_contain_text("Unsupported image format")
    expect(rows.first.locator("button")).to_have_attribute("aria-current", "true")
    segmented(page)
    np.testing.assert_array_equal(canvas(page, "#upload")[..., :3], STREETS["street-0.png"])

    rows.nth(2).locator("button").click()
    expect(page.locator("#curl")).to_contain_text("@street-2.png")
    segmented(page)
    np.testing.assert_array_equal(canvas(page, "#upload")[..., :3], STREETS["street-2.png"])
    expect(rows.nth(2).locator("button")).to_have_attribute("aria-current", "true")

    with page.expect_download() as download:
        page.click("#album-shares")
    assert download.value.suggested_filename == "shares.csv"
    with Path(download.value.path()).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["image"] for row in table] == list(STREETS)
    for row in table:
        labels = expected_label_map(STREETS[row["image"]])
        shares = np.bincount(labels.ravel(), minlength=3) / labels.size
        assert [float(row[name]) for name in NAMES] == [round(share, 6) for share in shares]
        assert (row["width"], row["height"]) == (str(WIDTH), str(HEIGHT))
        assert (row["model"], row["version"]) == ("tiny", "2")

    page.select_option("#model", label="other / 1")  # all of them anew
    expect(rows.nth(0)).to_contain_text("blue")
    expect(page.locator("#album-title")).to_have_text("3 of 4 images, 1 failed")
    page.click("#album-clear")
    expect(page.locator("#album")).to_be_hidden()


def test_names_are_quoted_in_the_table(desk: Visit) -> None:
    """Source: RFC 4180, section 2."""
    text = desk.page.evaluate(
        """async () => {
          const { sharesTable } = await import("/web/js/shares.js");
          const contract = { classes: [{ id: 0, name: "a,b" }] };
          const version = { model: "m", version: "1", contract };
          const answer = { version, width: 2, height: 1, pixels: [1] };
          const job = (name, state) => ({ file: { name }, state, answer });
          return sharesTable([job('5" x 7", old.png', "done"), job("no.png", "failed")]);
        }"""
    )
    assert (
        text
        == 'image,width,height,model,version,"a,b"\r\n"5"" x 7"", old.png",2,1,m,1,0.500000\r\n'
    )


def test_an_image_is_seen_before_its_answer_and_can_be_cancelled(desk: Visit) -> None:
    page = desk.page
    page.route("**/segment*", lambda route: None)
    give(page, png(IMAGE))
    expect(page.locator("#frame")).to_be_visible()
    np.testing.assert_array_equal(canvas(page, "#upload")[..., :3], IMAGE)
    assert (canvas(page, "#classes")[..., 3] == 0).all()
    expect(page.locator("#progress")).to_be_visible()
    expect(page.locator("#progress-text")).to_contain_text("sent")
    page.click("#progress-cancel")
    expect(page.get_by_role("alert").first).to_contain_text("Cancelled")
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.locator("#frame")).to_be_visible()
    page.unroute_all()
    page.click("#problem-again")
    segmented(page)
    expect(page.locator("#problem")).to_be_hidden()
    assert (canvas(page, "#classes")[..., 3] == 255).all()


def test_all_that_wait_are_cancelled(desk: Visit) -> None:
    page = desk.page
    page.route("**/segment*", lambda route: None)
    give_all(page)
    expect(page.locator("#progress-text")).to_contain_text("Image 1 of 3")
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator("#album-list .small")).to_have_text(["cancelled"] * 3)


def test_what_came_last_goes_first(desk: Visit) -> None:
    page = desk.page
    page.route("**/segment*", lambda route: None)
    give_all(page)
    page.wait_for_selector("#album-list [data-state=busy]")
    page.unroute_all()
    give(page, png(IMAGE), "last.png")
    expect(page.locator("#curl")).to_contain_text("@last.png")
    expect(page.locator("#album-title")).to_have_text("4 of 4 images")


def test_an_upload_is_followed(desk: Visit) -> None:
    """The share that has gone out never shrinks, and ends at all of it."""
    seen = desk.page.evaluate(
        """async () => {
          const { post } = await import("/web/js/upload.js");
          const seen = [];
          const body = new Blob([new Uint8Array(150_000)]);
          const sent = (share) => seen.push(share);
          const response = await post("segment", { headers: { "X-Request-ID": "up" }, body, sent });
          return [response.status, response.headers.get("x-request-id"), seen];
        }"""
    )
    status, request_id, shares = seen
    assert (status, request_id) == (415, "up")
    assert shares == sorted(shares) and shares[-1] == 1
