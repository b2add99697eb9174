"""Jobs killed again and again at any moment: at the end all is there, whole, and as without it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.drawing import png, street
from tests.serving import ROOT, environment
from tests.tiny_models import write_model

KILLS = int(os.environ.get("KILLS", "5"))
"""Kills of `fcn predict`; docs/reliability.md says how many were tried."""
IMAGES = 60
OUTPUTS = ("label_map", "overlay", "color")


def predict(model: Path, images: Path, out: Path) -> list[str]:
    given = [str(images), "--local", str(model), "--out", str(out)]
    return [sys.executable, "-m", "cli.main", "predict", *given, "--write", ",".join(OUTPUTS)]


def run(words: list[str]) -> None:
    subprocess.run(words, cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=300)


def files(folder: Path) -> dict[str, bytes]:
    """The outputs by name; the journal has them in the order in which they were done."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {name: body for name, body in found.items() if not name.endswith(".jsonl")}


def test_a_prediction_killed_again_and_again_is_that_of_an_undisturbed_run(tmp_path: Path) -> None:
    model = write_model(tmp_path / "models")
    images = tmp_path / "images"
    images.mkdir()
    for n in range(IMAGES):
        (images / f"{n:03}.png").write_bytes(png(street(240 + n, 320)))
    began_s = time.monotonic()
    run(predict(model, images, tmp_path / "whole"))
    takes_s = time.monotonic() - began_s

    chance = random.Random(14)
    killed = 0
    out = tmp_path / "killed"
    for _ in range(20 * KILLS):
        words = predict(model, images, out)
        with subprocess.Popen(
            words, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                process.wait(chance.uniform(0.0, 1.2 * takes_s))
                # It came to its end: another output is lost, so that there is work again.
                for path in out.rglob("*.png"):
                    if chance.random() < 0.5:
                        path.unlink()
            except subprocess.TimeoutExpired:
                process.kill()
                killed += 1
        if killed == KILLS:
            break
    assert killed == KILLS
    run(predict(model, images, out))
    whole = files(tmp_path / "whole")
    assert len(whole) >= IMAGES * len(OUTPUTS)
    assert files(out) == whole, "and so no .part file"


@pytest.mark.parametrize("kind", ["label_map", "shares.csv"])
def test_a_part_that_was_left_is_written_over(tmp_path: Path, kind: str) -> None:
    from fcn_client.predict.writer import part_of

    path = tmp_path / kind
    with part_of(path) as file:
        file.write(b"x" * 1000)
        (left,) = tmp_path.iterdir()
    assert path.read_bytes() == b"x" * 1000
    left.write_bytes(b"y" * 5000)  # as a killed job leaves it
    with part_of(path) as file:
        file.write(b"short")
    assert [p.name for p in tmp_path.iterdir()] == [kind]
    assert path.read_bytes() == b"short"
