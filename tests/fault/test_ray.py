"""Ray Serve and Ray Data on clusters of several nodes on this machine, in an environment of their
own: answers are the server's, and neither a node's death nor an update loses one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import need
from tests.drawing import png, street
from tests.serving import ROOT, Server, environment, running
from tests.tiny_models import write_model

IMAGES = 100


def ray_python() -> Path:
    """The interpreter of the environment with Ray."""
    python = Path(os.environ.get("RAY_PYTHON", f"{sys.prefix}/ray/bin/python"))
    need(python.exists(), "Ray, of tests/acceptance/ray.txt: run `make ray`")
    return python


def held(script: str, server: Server, *arguments: object) -> list[str]:
    """Runs a script of tests/acceptance and returns what it says held."""
    done = subprocess.run(
        [ray_python(), ROOT / "tests" / "acceptance" / f"{script}.py", *map(str, arguments)],
        env=environment(PYTHONPATH=str(ROOT), PYTHONWARNINGS="ignore", ORT_DISABLE_TELEMETRY="1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=270,  # before that of pytest, which would leave Ray running
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if " ok" in line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "first", "tiny", 1)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    write_model(tmp_path / "second", "tiny", 2, bias=(0, 300, 0))
    return tmp_path


def test_serve(folder: Path) -> None:
    image = png(street(600, 800))
    (folder / "image.png").write_bytes(image)
    (folder / "broken.png").write_bytes(image[:2000])
    with running(folder / "first") as server:
        lines = held("ray_serve", server, server.url, server.target, folder)
    assert len(lines) == 11, lines


def test_predict(folder: Path) -> None:
    images = folder / "images"
    images.mkdir()
    for seed in range(IMAGES):
        (images / f"{seed:03d}.png").write_bytes(png(street(120, 160, seed=seed)))
    (images / "broken.png").write_bytes(png(street())[:100])
    with running(folder / "first") as server:
        lines = held("ray_bulk", server, server.url, folder)
    assert len(lines) >= 18, lines
