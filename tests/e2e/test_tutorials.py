"""docs/tutorials/: each is followed from its first command to its last, on drawn images."""

from __future__ import annotations

import csv
import json
import re
import shutil
import ssl
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.conftest import need
from tests.drawing import jpeg, read_png, street
from tests.serving import ROOT, running
from tests.tiny_models import write_model
from tests.tutorials import FOLDER, addresses, commands, follow, page, saved_files
from tests.unit.repository.pages import blocks
from tests.waiting import until

SHORT = (
    "data.workers=0", "network.width=0.125", "augment.crop_height=40", "augment.crop_width=56",
    "schedule.batch_size=4", "schedule.epochs=1", "schedule.warmup_iterations=1", "threads=1",
)  # fmt: skip
"""The test adds this to a page's training command: a narrow network, small crops, one epoch."""
SHIPPED = "camvid-fcn8s-mobilenet_v1"
HEIGHT, WIDTH = 60, 80

pytestmark = pytest.mark.timeout(1200)  # a dozen programs, most of which import torch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clone, as far as a tutorial looks at it, and a photo."""
    (tmp_path / "training").symlink_to(ROOT / "training")
    (tmp_path / "docker").symlink_to(ROOT / "docker")
    (tmp_path / "photo.jpg").write_bytes(jpeg(street(HEIGHT, WIDTH)))
    return tmp_path


@pytest.fixture(autouse=True)
def _has_curl() -> None:
    need(shutil.which("curl") is not None, "curl is not installed")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_a_tutorial_begins_with_what_it_takes(path: Path) -> None:
    """It says from what it starts, how long it takes, what is needed, and shows a picture."""
    beginning = path.read_text(encoding="utf-8").partition("\n## 1.")[0]
    for words in ("You start with", "minutes", "You need", "![", "clone of this repository"):
        assert words in beginning.replace("\n", " "), words
    (minutes,) = re.findall(r"(\d+)\s+minutes", beginning)
    assert int(minutes) <= 20


def test_train(folder: Path) -> None:
    steps = commands("train", "bash")
    served = next(n for n, step in enumerate(steps) if "curl" in step.text)
    short = " ".join(SHORT)
    shorter = {
        "data.root=data/streets": f"data.root=data/streets {short}",
        "drawn data/streets": "drawn data/streets --train 8 --val 2 --test 3",
    }
    follow(steps[:served], folder, shorter)
    assert 0 <= json.loads((folder / "scores.json").read_text())["mean_iu"] <= 1
    with running(folder / "my_models") as server:
        printed = follow(steps[served:], folder, addresses(server))
    assert read_png((folder / "overlay.png").read_bytes()).shape == (120, 160, 3)
    for text in printed[1:]:
        assert "mean IU" in text


def test_adopt(folder: Path) -> None:
    for name, text in saved_files("adopt").items():
        (folder / name).write_text(text)
    steps = commands("adopt", "bash", "python")
    served = next(n for n, step in enumerate(steps) if "curl" in step.text)
    follow(steps[:served], folder, {})
    with running(folder / "my_models") as server:
        printed = follow(steps[served:], folder, addresses(server))
        reply = server.rest.post("/segment", content=(folder / "photo.jpg").read_bytes())
    image = np.asarray(Image.open(folder / "photo.jpg"))
    np.testing.assert_array_equal(read_png(reply.content), image.argmax(axis=-1))
    assert '"name": "blue"' in printed[-1]


def test_annotate(folder: Path) -> None:
    write_model(folder / "model_repository")
    (folder / "photos" / "more").mkdir(parents=True)
    for name in ("one.jpg", "more/two.jpg"):
        shutil.copy(folder / "photo.jpg", folder / "photos" / name)
    _, rows, masks = follow(commands("annotate", "bash", "python"), folder, {})
    named = re.findall(r"^\| `(.*?)` \|", page("annotate").read_text(), re.M)
    made = {path.name for path in (folder / "predicted").iterdir()}
    wanted = {part.strip("`/") for cell in named for part in cell.split(", ")}
    assert {name.strip("`") for name in wanted} <= made
    with (folder / "predicted" / "shares.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == rows.count("one.jpg") + rows.count("two.jpg") == 2
    assert len(masks.splitlines()) >= 2


def test_production(folder: Path) -> None:
    need(shutil.which("openssl") is not None, "openssl is not installed")
    write_model(folder / "fcn" / "models", SHIPPED)
    steps = commands("production", "bash")
    (settings,) = (t for n, t in saved_files("production").items() if n.endswith("settings.env"))
    (folder / "fcn" / "settings.env").write_text(settings)
    checked = next(n for n, step in enumerate(steps) if "--check" in step.text)
    free = {"settings.env --rules": "settings.env --http-port=0 --grpc-port=0 --rules"}
    printed = follow(steps[: checked + 1], folder, free)
    assert "website" in printed[0] and "FAIL" not in printed[-1].upper(), printed[-1]
    key = (folder / "website.key").read_text().strip()
    file = folder / "fcn" / "settings.env"
    # Its paths are relative, and the server runs elsewhere.
    file.write_text(settings.replace("=fcn/", f"={folder}/fcn/"))
    with running(folder / "fcn" / "models", settings_file=file, drain_delay_s=0) as server:
        trusted = ssl.create_default_context(cafile=folder / "fcn" / "tls.crt")
        with httpx.Client(base_url=server.url, verify=trusted) as ask:
            follow(steps[checked + 1 :], folder, addresses(server))
            photo = (folder / "photo.jpg").read_bytes()
            assert ask.post("/segment", content=photo).status_code == 401
            newer = (folder / "website.key").read_text().strip()
            versions = f"/v1/models/{SHIPPED}"
            # First the old key, so that no wrong one is asked for again and again: after twenty
            # the address would have to wait.
            until(lambda: ask.get(versions, headers={"X-API-Key": key}).status_code == 401)

            def states() -> list[str]:
                # None where the website asks more often than its 20 times a second.
                known = ask.get(versions, headers={"X-API-Key": newer}).json()
                return [version["state"] for version in known.get("versions", ())]

            until(lambda: states() == ["ready", "ready"])


def test_what_is_left_out_says_why() -> None:
    for path in FOLDER.glob("*.md"):
        for block in blocks(path):
            if block.language in ("bash", "sh", "python") and block.skipped:
                assert len(block.skipped) > 10
