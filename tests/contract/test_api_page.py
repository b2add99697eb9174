"""docs/api.md: its snippets run, and its tables say what the code does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.api.http.parameters import NAMES
from service.api.status import TABLE, TYPE_PREFIX
from service.core.outputs.registry import all_outputs
from service.telemetry import Telemetry
from tests.conftest import need
from tests.contract.oip import clients_python
from tests.drawing import jpeg, read_png, street
from tests.serving import ROOT, Server, environment

PAGE = (ROOT / "docs" / "api.md").read_text()
SNIPPETS = re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def rows(start: str) -> list[list[str]]:
    """The cells of the table rows that begin with `start`."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith(start)
    ]


PROBLEM = "urn:fcn:problem:unsupported-image-format"
SAID = [
    ("sh", ()),
    ("sh", ()),
    ("sh", ('"model": "tiny"',)),
    ("python", ("(30, 50) tiny",)),
    ("python", ("image/png 30 50 tiny",)),
    ("python", ()),
    ("sh", ("answer.label_map", "answer.polygons")),
    (
        "python",
        ("overlay (30, 50, 3)", "color (30, 50, 3)", "1 green ", "regions", "(3, 30, 50) (30, 50)"),
    ),
    ("python", ("OUTPUT_RLE application/json", "tiny 2", "application/x-npy\nimage/png")),
    ("sh", (PROBLEM, "exit code 22")),
    ("python", (f"415 {PROBLEM} Unsupported image format", "job-7")),
    ("python", ("NOT_FOUND Unknown model: ", "job-7")),
    ("sh", ('"name":"tiny"',)),
    ("python", ("tiny 2 ready", "1 green [")),
    ("python", ("tiny 2 True ['red', 'green', 'blue']",)),
    ("python", ("tiny (1, 30, 50)",)),
    ("python", ("tiny (1, 30, 50)",)),
    ("sh", ("tiny",)),
    ("sh", ('fcn_model_info{engine="onnxruntime",model="tiny"',)),
    ("python", ("SERVING",)),
]
"""Each snippet's language, and what it prints, beside the images that it writes."""


def test_there_are_snippets() -> None:
    assert [language for language, _ in SNIPPETS] == [language for language, _ in SAID]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet(server: Server, tmp_path: Path, number: int) -> None:
    language, text = SNIPPETS[number]
    need(language != "sh" or shutil.which("curl") is not None, "curl")
    (tmp_path / "photo.jpg").write_bytes(jpeg(street(30, 50)))
    text = text.replace("http://localhost:8000", server.url)
    text = text.replace("localhost:8001", server.target)
    text = text.replace("localhost:8000", server.url.removeprefix("http://"))
    text = text.replace("camvid-fcn8s-mobilenet_v1", "tiny")
    python = clients_python() if "tritonclient" in text else Path(sys.executable)
    command = ["sh", "-ec"] if language == "sh" else [python, "-c"]
    done = subprocess.run(
        [*command, text],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    words = SAID[number][1]
    assert all(word in done.stdout for word in words), done.stdout
    images = list(tmp_path.glob("*.png"))
    assert images or words
    for image in images:
        assert read_png(image.read_bytes()).shape[:2] == (30, 50)


def test_errors() -> None:
    listed = rows("| `urn:fcn:problem:")
    assert listed == [
        [f"`{TYPE_PREFIX}{row.kind}`", str(row.http), row.code.name, "yes" if row.retry else "no"]
        for row in TABLE.values()
    ]


def test_parameters_and_outputs() -> None:
    for name in NAMES:
        assert len(rows(f"| `{name}` |")) == 1
    for output in all_outputs():
        assert len(rows(f"| `{output}` | `")) == 1


def test_metrics() -> None:
    text = Telemetry(0.175).scrape().decode()
    real = set(re.findall(r"^# TYPE (fcn_\w+)", text, re.MULTILINE))
    assert {row[0].strip("`") for row in rows("| `fcn_")} == real
