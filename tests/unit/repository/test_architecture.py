"""docs/architecture.md names files and words that exist, and for what is new at most two files."""

from __future__ import annotations

import re

import pytest

from tests.unit.repository.pages import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
REQUIRED = {
    "a new output",
    "a new error",
    "tracing",
    "a limit by key",
    "a new backbone",
    "a new loss",
    "a new data set",
    "TLS",
}


def rows() -> dict[str, list[str]]:
    """Reads the table "Where to add what": what is added -> the cells that say where."""
    table = PAGE.partition("## Where to add what")[2].partition("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {cells[0]: [cell for cell in cells[1:] if cell.strip(" |")] for cells in lines[1:]}


def test_everything_that_is_coming_has_a_place() -> None:
    assert set(rows()) >= REQUIRED
    assert all(1 <= len(cells) <= 2 for cells in rows().values())


@pytest.mark.parametrize("what", rows())
def test_files_hold_what_is_named(what: str) -> None:
    for cell in rows()[what]:
        path, *symbols = re.findall(r"`([^`]+)`", cell)
        text = (ROOT / path).read_text(encoding="utf-8")
        assert symbols
        in_file = [symbol for symbol in symbols if "/" not in symbol]
        assert [symbol for symbol in in_file if symbol not in text] == [], path


def test_paths_exist() -> None:
    named = re.findall(r"`((?:\w+/)+[\w.]*)`", PAGE)
    # `core/engines/` and the like are folders of service/.
    assert [
        path for path in named if not ((ROOT / path).exists() or (ROOT / "service" / path).exists())
    ] == []


@pytest.mark.parametrize("package", ["service", "model", "training"])
def test_folders_and_modules_beside_them_are_there(package: str) -> None:
    """Each folder, and each module that is in none: those in a folder are its own affair."""
    top = ROOT / package
    wanted = {f"{init.parent.relative_to(ROOT)}/" for init in top.rglob("*/__init__.py")}
    wanted |= {str(module.relative_to(ROOT)) for module in top.glob("*.py")}
    unnamed = {name for name in wanted if f"`{name}`" not in PAGE}
    assert unnamed <= {f"{package}/__init__.py", "service/core/"}
