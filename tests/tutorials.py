"""Follows a tutorial as a reader would: saves its files and runs its commands, in their order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.serving import ROOT, Server, environment
from tests.unit.repository.pages import Block, blocks

FOLDER = ROOT / "docs" / "tutorials"
_SAVED = re.compile(r"Save\s+this\s+as\s+`([^`]+)`")


def page(name: str) -> Path:
    return FOLDER / f"{name}.md"


def saved_files(name: str) -> dict[str, str]:
    """File -> content, of each block whose paragraph before says `Save this as FILE`."""
    text = page(name).read_text(encoding="utf-8")
    found = {}
    for block in blocks(page(name)):
        before = text[: text.index(block.text)].rpartition("```")[0]
        if names := _SAVED.findall(before.rpartition("```")[2]):
            found[names[-1]] = block.text
    return found


def commands(name: str, *languages: str) -> list[Block]:
    """Lists the blocks of these languages that the page does not say are left out."""
    return [b for b in blocks(page(name)) if b.language in languages and not b.skipped]


def addresses(server: Server) -> dict[str, str]:
    """Gives what pages call the server -> where it is; the longest first, to be replaced so."""
    rest = server.url.partition("://")[2]
    return {
        "https://localhost:8000": server.url,
        "http://localhost:8000": server.url,
        "localhost:8000": rest,
        "localhost:8001": server.target,
    }


def follow(
    steps: Sequence[Block], folder: Path, replaced: Mapping[str, str], **env: str
) -> list[str]:
    """Runs blocks of shell and Python in the folder, and returns what each prints.

    replaced: texts of the page -> what this machine has in their place.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    programs = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    printed = []
    for step in steps:
        text = step.text
        for words, other in replaced.items():
            text = text.replace(words, other)
        done = subprocess.run(
            [*programs["bash" if step.language == "sh" else step.language], text],
            cwd=folder,
            env=environment(PATH=path, PYTHONPATH=str(ROOT), no_proxy="*", **env),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{step.text}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    return printed
