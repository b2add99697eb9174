"""The README is documentation that runs: its tree, its links, its commands."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cli.main import build_parser, command_names
from tests.conftest import need
from tests.drawing import jpeg, street
from tests.serving import Server, running
from tests.tiny_models import write_model
from tests.unit.repository.pages import PAGES, ROOT, blocks

README = ROOT / "README.md"
SHIPPED = ROOT / "model_repository"


def tree() -> dict[str, str]:
    """Folder -> purpose, as the README's tree has it; `service/core/` is nested two blanks deep."""
    (text,) = (block.text for block in blocks(README) if not block.language)
    purposes = {}
    parent = ""
    for line in text.splitlines():
        name, purpose = line.split(maxsplit=1)
        path = f"{parent}{name}" if line.startswith("  ") else name
        parent = parent if line.startswith("  ") else name
        purposes[path] = purpose
    return purposes


def test_the_tree_names_what_is_there() -> None:
    named = tree()
    assert [path for path in named if not (ROOT / path).is_dir()] == []
    packages = [*ROOT.glob("*/__init__.py"), *ROOT.glob("service/*/__init__.py")]
    assert {f"{init.parent.relative_to(ROOT)}/" for init in packages} <= set(named)
    assert all(named.values())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts it as `make serve` does, on free ports; a tiny model where none is shipped yet."""
    repository = SHIPPED
    if not any(SHIPPED.glob("*/*/model.onnx")):
        repository = tmp_path_factory.mktemp("models")
        write_model(repository)
    with running(repository) as server:
        yield server


@pytest.mark.timeout(300)
def test_commands_run(server: Server, tmp_path: Path) -> None:
    """Every block of the README that does not say why not, in order, in one folder."""
    need(shutil.which("curl") is not None, "curl is not installed")
    (tmp_path / "photo.jpg").write_bytes(jpeg(street(60, 80)))
    run = [block for block in blocks(README) if block.language and not block.skipped]
    assert {block.language for block in run} == {"bash", "python"}
    for block in run:
        text = block.text.replace("localhost:8000", server.url.removeprefix("http://"))
        text = text.replace("localhost:8001", server.target)
        program = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
        done = subprocess.run(
            [*program[block.language], text],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "no_proxy": "*"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"

    from PIL import Image

    def read(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.asarray(Image.open(tmp_path / name))

    assert read("labels.png").shape == (60, 80)
    assert read("overlay.png").shape == (60, 80, 3)
    np.testing.assert_array_equal(read("labels.png"), read("labels-grpc.png"))


def test_skipped_blocks_give_a_reason() -> None:
    assert all(len(block.skipped) > 10 for page in PAGES for block in blocks(page) if block.skipped)


def fcn_commands() -> list[list[str]]:
    """The words of each `fcn ...` line of every page, without the program."""
    found = []
    for page in PAGES:
        for block in (block for block in blocks(page) if block.language == "bash"):
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and Path(words[0]).name == "fcn":
                    end = words.index(">") if ">" in words else len(words)
                    found.append(words[1:end])
    return found


@pytest.mark.parametrize("words", fcn_commands(), ids=" ".join)
def test_fcn_lines_parse(words: list[str]) -> None:
    """Commands that a test cannot afford to run at least have the flags the pages give them."""
    build_parser(command_names()).parse_args(words)


def make_targets() -> set[str]:
    lines = (ROOT / "Makefile").read_text().splitlines()
    return {line.partition(":")[0] for line in lines if ": " in line and " ## " in line}


def test_make_lines_exist() -> None:
    named = {
        words[1]
        for page in PAGES
        for block in blocks(page)
        if block.language == "bash"
        for line in block.text.replace("\\\n", " ").splitlines()
        if (words := shlex.split(line, comments=True)) and words[0] == "make"
    }
    assert {"serve", "test"} <= named <= make_targets()
