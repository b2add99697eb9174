"""The web page at `/`, used as people do: in a real Chromium, over a real server."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import Page, Position, expect

from tests.browser.conftest import MAX_IMAGE_BYTES, TARGET_S, Visit
from tests.conftest import need
from tests.drawing import encode, png, read_png, street
from tests.serving import Server
from tests.tiny_models import CLASSES, expected_label_map

UInt8Array = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 60, 100
IMAGE = street(HEIGHT, WIDTH)
LABELS = expected_label_map(IMAGE)
PALETTE = np.array([(150, 0, 30), (30, 120, 135), (120, 0, 240)], np.uint8)
"""The safe colours most like those of CLASSES."""
NAMES = [info.name for info in CLASSES]


def give(page: Page, body: bytes, name: str = "street.png", media_type: str = "image/png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": media_type, "buffer": body})


def segmented(page: Page) -> None:
    page.wait_for_selector("body[data-state=done]")


@pytest.fixture
def done(desk: Visit) -> Page:
    """The page with the street in it."""
    give(desk.page, png(IMAGE))
    segmented(desk.page)
    return desk.page


def canvas(page: Page, selector: str) -> UInt8Array:
    """uint8 RGBA [H,W,4] of a canvas."""
    url = page.evaluate(f"document.querySelector('{selector}').toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.array(image.convert("RGBA"))


def point(page: Page, x: int, y: int) -> Position:
    """Where pixel (x, y) of the image is in the frame, for `hover`."""
    box = page.locator("#frame").bounding_box()
    assert box is not None
    return {"x": (x + 0.5) * box["width"] / WIDTH, "y": (y + 0.5) * box["height"] / HEIGHT}


def set_slider(page: Page, name: str, value: int) -> None:
    page.locator(f"#{name}").fill(str(value))


def test_classes_are_painted_where_the_server_found_them(done: Page) -> None:
    painted = canvas(done, "#classes")
    np.testing.assert_array_equal(painted[..., :3], PALETTE[LABELS])
    assert (painted[..., 3] == 255).all()
    np.testing.assert_array_equal(canvas(done, "#upload")[..., :3], IMAGE)


def test_legend_has_the_shares(done: Page) -> None:
    rows = done.locator("#legend li").all()
    counts = np.bincount(LABELS.ravel(), minlength=3)
    order = np.argsort(-counts)
    for row, index in zip(rows, order, strict=True):
        assert row.locator(".name").inner_text() == NAMES[index]
        share = float(row.locator(".share").inner_text().removesuffix("%"))
        assert share == pytest.approx(100 * counts[index] / LABELS.size, abs=0.051)
        color = row.locator(".swatch").evaluate("e => getComputedStyle(e).backgroundColor")
        assert color == f"rgb({', '.join(map(str, PALETTE[index]))})"


def test_hover_tells_the_class(done: Page) -> None:
    for x, y in (90, 5), (90, 30), (90, 55), (3, 30), (99, 59), (0, 0):
        done.hover("#frame", position=point(done, x, y), force=True)
        name = NAMES[LABELS[y, x]]
        expect(done.locator("#readout")).to_have_text(f"{name}, at {x} × {y}")
        expect(done.locator("#tag")).to_have_text(name)
        expect(done.locator("#legend .under-cursor .name")).to_have_text(name)
    done.mouse.move(1, 1)
    expect(done.locator("#tag")).to_be_hidden()
    expect(done.locator("#readout")).to_contain_text(f"{WIDTH} × {HEIGHT} pixels, 3 classes")


def test_a_class_is_hidden_and_shown(done: Page) -> None:
    blue = done.get_by_role("button", name="blue")
    blue.click()
    expect(blue).to_have_attribute("aria-pressed", "false")
    np.testing.assert_array_equal(canvas(done, "#classes")[..., 3] == 0, LABELS == 2)
    blue.click()
    expect(blue).to_have_attribute("aria-pressed", "true")
    assert (canvas(done, "#classes")[..., 3] == 255).all()
    done.click("#hide-all")
    assert (canvas(done, "#classes")[..., 3] == 0).all()
    expect(done.locator("[data-output=overlay]")).to_be_disabled()
    expect(done.locator("#downloads-note")).to_contain_text("show one")
    done.click("#show-all")
    expect(done.locator("[data-output=overlay]")).to_be_enabled()


def seen(page: Page, x: int, y: int) -> list[int]:
    """RGB on the screen at a pixel of the image."""
    page.mouse.move(1, 1)
    with Image.open(io.BytesIO(page.locator("#frame").screenshot())) as image:
        at = point(page, x, y)
        rgb = np.array(image.convert("RGB"))[int(at["y"]), int(at["x"])]
        return [int(value) for value in rgb]


def test_opacity_and_wipe(done: Page) -> None:
    """The right side of the top third is blue in every pixel."""
    set_slider(done, "opacity", 100)
    assert seen(done, 90, 5) == PALETTE[2].tolist()
    expect(done.locator("#opacity-value")).to_have_text("100%")
    set_slider(done, "wipe", 95)
    assert seen(done, 90, 5) != PALETTE[2].tolist()
    set_slider(done, "wipe", 50)
    assert seen(done, 90, 5) == PALETTE[2].tolist()
    set_slider(done, "opacity", 0)
    assert seen(done, 90, 5) != PALETTE[2].tolist()


def test_the_wipe_is_dragged(done: Page) -> None:
    split, frame = done.locator(".split").bounding_box(), done.locator("#frame").bounding_box()
    assert split is not None and frame is not None
    done.mouse.move(split["x"] + split["width"] / 2, split["y"] + 40)
    done.mouse.down()
    done.mouse.move(frame["x"] + 0.75 * frame["width"], split["y"] + 60, steps=4)
    done.mouse.up()
    expect(done.locator("#wipe")).to_have_value("75")
    expect(done.locator("#wipe-value")).to_have_text("75%")


def saved(page: Page, output: str, name: str) -> bytes:
    with page.expect_download() as download:
        page.click(f"[data-output={output}]")
    assert download.value.suggested_filename == name
    return Path(download.value.path()).read_bytes()


def test_downloads_are_the_servers_bytes(done: Page, server: Server) -> None:
    def answer(query: str) -> bytes:
        headers = {"Content-Type": "image/png"}
        return server.rest.post(f"/segment{query}", content=png(IMAGE), headers=headers).content

    set_slider(done, "opacity", 35)
    assert saved(done, "label_map", "street.label_map.png") == answer("")
    overlay = saved(done, "overlay", "street.overlay.png")
    assert overlay == answer("?output=overlay&alpha=0.35")
    assert saved(done, "color", "street.color.png") == answer("?output=color")
    summary = json.loads(saved(done, "json", "street.json.json"))
    assert summary["classes"] == json.loads(answer("?output=json"))["classes"]

    done.get_by_role("button", name="blue").click()
    kept = saved(done, "label_map", "street.label_map.png")
    assert kept == answer("?classes=red,green")
    np.testing.assert_array_equal(read_png(kept) == 255, LABELS == 2)
    expect(done.locator("#downloads-note")).to_have_text("Saved street.label_map.png.")


def test_every_output_of_the_server_is_offered(done: Page, server: Server) -> None:
    offered = done.locator("#downloads button").evaluate_all(
        "all => all.map(b => b.dataset.output)"
    )
    assert offered == server.rest.get("/").json()["outputs"]
    # The network of `tiny` has no logits, that of `other` has.
    expect(done.locator("[data-output=polygons]")).to_be_enabled()
    expect(done.locator("[data-output=confidence]")).to_be_disabled()
    expect(done.locator("[data-output=confidence]")).to_contain_text("exported without logits")
    done.select_option("#model", label="other / 1")
    saved(done, "confidence", "street.confidence.png")
    assert saved(done, "probabilities", "street.probabilities.npy").startswith(b"\x93NUMPY")
    assert b"MultiPolygon" in saved(done, "polygons", "street.polygons.geojson")


def test_the_size_for_the_network_is_asked_for(done: Page) -> None:
    with done.expect_request("**/segment?scale=480"):
        done.select_option("#scale", value="480")
    expect(done.locator("#curl")).to_contain_text("scale=480")


def test_the_command_runs(done: Page, server: Server, tmp_path: Path) -> None:
    need(shutil.which("curl") is not None, "curl")
    done.get_by_role("button", name="red").click()
    expected = saved(done, "overlay", "street.overlay.png")
    done.click("#copy")
    expect(done.locator("#copy")).to_have_text("Copied")
    command = done.evaluate("navigator.clipboard.readText()")
    assert server.url in command and "classes=" in command
    (tmp_path / "street.png").write_bytes(png(IMAGE))
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True, timeout=30)
    assert (tmp_path / "street.overlay.png").read_bytes() == expected


def test_the_command_follows_what_is_shown(done: Page, tmp_path: Path) -> None:
    """It gives what a click on the download would give now, not what it would have given."""
    need(shutil.which("curl") is not None, "curl")
    expect(done.locator("#curl")).not_to_contain_text("?")
    saved(done, "overlay", "street.overlay.png")
    done.get_by_role("button", name="blue").click()
    set_slider(done, "opacity", 25)
    command = done.inner_text("#curl")
    assert "output=overlay&alpha=0.25&classes=" in command and "blue" not in command
    done.click("#hide-all")  # nothing can be asked for: the last command stays
    assert done.inner_text("#curl") == command
    done.get_by_role("button", name="red").click()
    done.get_by_role("button", name="green").click()
    (tmp_path / "street.png").write_bytes(png(IMAGE))
    subprocess.run(["sh", "-ec", done.inner_text("#curl")], cwd=tmp_path, check=True, timeout=30)
    expected = saved(done, "overlay", "street.overlay.png")
    assert (tmp_path / "street.overlay.png").read_bytes() == expected
    give(done, png(IMAGE), "it's another.png")
    expect(done.locator("#curl")).to_contain_text("another.label_map.png")
    assert "output=" not in done.inner_text("#curl")
    (tmp_path / "it's another.png").write_bytes(png(IMAGE))
    subprocess.run(["sh", "-ec", done.inner_text("#curl")], cwd=tmp_path, check=True, timeout=30)
    assert (tmp_path / "it's another.label_map.png").exists()


def test_time_is_told_against_the_servers_target(done: Page) -> None:
    total = done.locator("#timing-total").inner_text()
    assert total.endswith(f" of {1000 * TARGET_S:.0f} ms")
    assert done.locator("#timing dt").all_inner_texts() == ["decode", "queue", "infer", "render"]
    widths = done.locator("#stages span").evaluate_all("a => a.map(e => e.offsetWidth)")
    assert len(widths) == 4
    expect(done.locator("#timing-note")).to_contain_text("with upload and download")


def test_another_model_answers_at_once(done: Page) -> None:
    expect(done.locator("#model option:checked")).to_have_text("tiny / 2")
    done.select_option("#model", label="other / 1")
    expect(done.locator("#curl")).to_contain_text("model=other")
    labels = expected_label_map(IMAGE, (0, 0, 300))
    np.testing.assert_array_equal(canvas(done, "#classes")[..., :3], PALETTE[labels])
    expect(done.locator("#about")).to_contain_text("ForBlue things")
    expect(done.locator("#about")).to_contain_text("other, version 1")
    done.select_option("#model", label="tiny / 1")
    expect(done.locator("#curl")).to_contain_text("model=tiny&version=1")


DATA = """([kind, name, body]) => {
  const bytes = Uint8Array.from(atob(body), c => c.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, {type: "image/png"}));
  const init = {bubbles: true, cancelable: true};
  document.querySelector("#image").dispatchEvent(kind === "drop"
    ? new DragEvent("drop", {...init, dataTransfer: data})
    : new ClipboardEvent("paste", {...init, clipboardData: data}));
}"""


def test_drop_and_paste(desk: Visit) -> None:
    page = desk.page
    other = street(HEIGHT, WIDTH, seed=1)
    for kind, image in ("drop", IMAGE), ("paste", other):
        page.evaluate(DATA, [kind, f"{kind}.png", base64.b64encode(png(image)).decode()])
        expect(page.locator("#curl")).to_contain_text(f"@{kind}.png")
        np.testing.assert_array_equal(canvas(page, "#upload")[..., :3], image)
        labels = expected_label_map(image)
        np.testing.assert_array_equal(canvas(page, "#classes")[..., :3], PALETTE[labels])


def test_camera(desk: Visit) -> None:
    page = desk.page
    page.click("#camera")
    page.wait_for_function("() => document.querySelector('#camera-video').videoWidth > 0")
    page.click("#camera-take")
    segmented(page)
    expect(page.locator("#camera-dialog")).to_be_hidden()
    expect(page.locator("#curl")).to_contain_text("@camera.jpg")
    assert page.evaluate("document.querySelector('#camera-video').srcObject") is None


def test_a_format_the_browser_cannot_show(desk: Visit) -> None:
    give(desk.page, encode(IMAGE, "TIFF"), "scan.tiff", "image/tiff")
    segmented(desk.page)
    np.testing.assert_array_equal(canvas(desk.page, "#upload")[..., :3], IMAGE)


def test_an_image_on_its_side_is_shown_upright(desk: Visit) -> None:
    image = Image.fromarray(IMAGE)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    give(desk.page, encode(image, "PNG", exif=exif), "turned.png")
    segmented(desk.page)
    np.testing.assert_array_equal(canvas(desk.page, "#upload")[..., :3], np.rot90(IMAGE, -1))
    labels = canvas(desk.page, "#classes")[..., :3]
    np.testing.assert_array_equal(labels, PALETTE[np.rot90(LABELS, -1)])


def test_what_is_no_image(desk: Visit) -> None:
    page = desk.page
    expect(page.locator(".answered:visible, .sliders:visible")).to_have_count(0)
    give(page, b"not an image", "notes.png")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Unsupported image format")
    expect(alert).to_contain_text("send JPEG, PNG, WebP, BMP or TIFF")
    expect(alert).to_contain_text("Request ")
    assert page.get_attribute("body", "data-state") == "empty"
    expect(page.locator(".answered:visible, .sliders:visible")).to_have_count(0)
    assert desk.refused == ["/segment"]
    give(page, png(IMAGE))
    segmented(page)
    expect(alert).to_be_hidden()


def test_too_large_is_told_before_the_upload(done: Page) -> None:
    give(done, bytes(MAX_IMAGE_BYTES + 1), "huge.png")
    expect(done.get_by_role("alert")).to_contain_text("Image too large")
    expect(done.get_by_role("alert")).to_contain_text("0.191 MiB")
    assert done.get_attribute("body", "data-state") == "done", "the last image stays"
    done.click("#problem-close")
    expect(done.locator("#problem")).to_be_hidden()


def test_no_answer(desk: Visit) -> None:
    page = desk.page
    page.route("**/segment*", lambda route: route.abort())
    give(page, png(IMAGE))
    expect(page.get_by_role("alert")).to_contain_text("could not be reached")
    page.unroute("**/segment*")
    give(page, png(IMAGE))
    segmented(page)
    page.route("**/segment*", lambda route: route.fulfill(status=502, body="<h1>Bad gateway"))
    page.click("[data-output=color]")
    expect(page.get_by_role("alert")).to_contain_text("Error 502")


def test_there_are_no_empty_panels_while_the_first_answer_is_waited_for(desk: Visit) -> None:
    page = desk.page
    page.route("**/segment*", lambda route: None)  # no answer
    give(page, png(IMAGE))
    page.wait_for_selector("body[data-state=busy]")
    expect(page.locator("#readout")).to_have_text("Segmenting …")
    expect(page.locator(".answered:visible, .sliders:visible")).to_have_count(0)
    page.unroute_all()
    give(page, png(IMAGE))
    segmented(page)
    assert page.locator(".answered:visible").count() == 3


@pytest.mark.parametrize(
    ("hidden", "drawn", "asked"),
    [
        ([], [1, 2], None),
        ([1], [2], ["dog"]),
        ([1, 2], [0], ["background"]),
        ([0], [1, 2], ["cat", "dog"]),
    ],
)
def test_the_background_is_left_alone(
    desk: Visit, hidden: list[int], drawn: list[int], asked: list[str] | None
) -> None:
    """It is as in the server's overlays, unless nothing else is shown."""
    found = desk.page.evaluate(
        """async (hidden) => {
          const { Classes } = await import("/web/js/classes.js");
          const info = (name, id) => ({ id, name, color: [id, 0, 0] });
          const infos = ["background", "cat", "dog"].map(info);
          const classes = Object.assign(new Classes(infos), { hidden: new Set(hidden) });
          classes.count(new Uint8Array([0, 0, 0, 1, 1, 2]));
          const palette = classes.palette();
          return [[0, 1, 2].filter((id) => palette[id] !== 0), classes.drawn];
        }""",
        hidden,
    )
    assert found == [drawn, asked]
