"""The project's pages (Markdown), read for the tests that hold them against the code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGES = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(r"(<!-- not run by the test: (?P<reason>.+?) -->\n)?```(?P<language>\w*)\n")


@dataclass(frozen=True)
class Block:
    """A fenced block; `skipped` is the reason the page gives for not running it in a test."""

    language: str
    text: str
    skipped: str | None


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, in its order."""
    text = page.read_text(encoding="utf-8")
    found = []
    position = 0
    while opening := _FENCE.search(text, position):
        end = text.index("\n```", opening.end() - 1)
        found.append(
            Block(opening["language"], text[opening.end() : end + 1], opening["reason"] or None)
        )
        position = end + len("\n```")
    return found


def links(page: Path) -> list[str]:
    """Targets of the links to other files of the project, without their anchors."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    files = (target.partition("#")[0] for target in targets if "://" not in target)
    return [file for file in files if file]
