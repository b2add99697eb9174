"""Draws the pictures of docs/tutorials/, from drawn scenes alone, into docs/figures/.

    python -m tests.draw_tutorials adopt web-app
    python -m tests.draw_tutorials train annotate --checkpoint runs/streets/best.pt

The latter two show what the network of the training tutorial answers. web-app needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import FilePayload, sync_playwright

from tests.browser.test_web_app import web_server
from tests.serving import ROOT, running
from tests.tiny_models import CLASSES, expected_label_map, write_model
from tests.tutorials import saved_files
from training.datasets.base import VOID
from training.datasets.drawn import draw

UInt8Array = npt.NDArray[np.uint8]
FIGURES = ROOT / "docs" / "figures"
GAP_PX = 8
ZOOM = 2
STREET_COLORS = [(70, 130, 180), (128, 0, 0), (128, 64, 128), (128, 128, 0)]


def coloured(labels: UInt8Array, colors: list[tuple[int, int, int]]) -> UInt8Array:
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    return palette[labels]


def side_by_side(name: str, *images: UInt8Array) -> None:
    height = images[0].shape[0]
    gap = np.full((height, GAP_PX, 3), 255, np.uint8)
    parts = [part for image in images for part in (image, gap)][:-1]
    picture = Image.fromarray(np.hstack(parts))
    large = picture.resize((ZOOM * picture.width, ZOOM * picture.height), Image.Resampling.NEAREST)
    large.quantize(64).save(FIGURES / f"{name}.png", optimize=True)


def adopt() -> None:
    scene = draw(120, 160, np.random.default_rng(5))
    labels = expected_label_map(scene.image)
    side_by_side("adopt", scene.image, coloured(labels, [c.color for c in CLASSES]))


def web_app() -> None:
    scene = draw(240, 320, np.random.default_rng(5))
    image = io.BytesIO()
    Image.fromarray(scene.image).save(image, "PNG")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        write_model(folder / "models", "colours")
        (folder / "app").mkdir()
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        with (
            web_server(folder / "app") as origin,
            running(folder / "models", cors_origins=origin) as server,
        ):
            page = saved_files("web-app")["index.html"]
            text = page.replace("http://localhost:8000", server.url)
            (folder / "app" / "index.html").write_text(text)
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 640, "height": 560})
            tab.goto(origin)
            file = FilePayload(name="scene.png", mimeType="image/png", buffer=image.getvalue())
            tab.set_input_files("#file", files=[file])
            tab.wait_for_selector("#classes li", timeout=120_000)
            shot = Image.open(io.BytesIO(tab.screenshot()))
            browser.close()
    shot.convert("RGB").quantize(128).save(FIGURES / "web-app.png", optimize=True)


def streets(names: list[str], checkpoint: Path) -> None:
    """Shows scenes that the network has not seen, and what it says of them."""
    import torch

    from model.fcn import label_map
    from training.checkpoint import load_checkpoint

    network = load_checkpoint(checkpoint).build_network()
    scene = draw(120, 160, np.random.default_rng(2026))
    pixels = torch.from_numpy(scene.image.copy()).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        answer = label_map(network(pixels))[0].numpy().astype(np.uint8)
    if "train" in names:
        target = coloured(scene.target, STREET_COLORS)
        target[scene.target == VOID] = 255
        side_by_side("train", scene.image, target, coloured(answer, STREET_COLORS))
    if "annotate" in names:
        mixed = scene.image / 2 + coloured(answer, STREET_COLORS) / 2
        side_by_side("annotate", scene.image, mixed.astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=("adopt", "web-app", "train", "annotate"))
    parser.add_argument("--checkpoint", type=Path, help="of the training tutorial")
    args = parser.parse_args()
    if "adopt" in args.names:
        adopt()
    if "web-app" in args.names:
        web_app()
    if learned := [name for name in args.names if name in ("train", "annotate")]:
        if args.checkpoint is None:
            parser.error("--checkpoint is needed: train it as docs/tutorials/train.md says")
        streets(learned, args.checkpoint)


if __name__ == "__main__":
    main()
