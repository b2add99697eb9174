"""The pages in docs/: all of them in the index, their links whole, their figures true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.repository.pages import PAGES, ROOT, links

DOCS = ROOT / "docs"
FIGURES = sorted((DOCS / "figures").glob("*.svg"))


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_index_has_every_page() -> None:
    pages = {path.name for path in DOCS.glob("*.md")} - {"index.md"}
    assert pages <= set(links(DOCS / "index.md"))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in links(page) if not (page.parent / link).exists()] == []


def anchors(page: Path) -> set[str]:
    """Makes anchors as GitHub does: small letters, no punctuation, blanks as dashes."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_anchors_exist(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s:]*)#([^)\s]+)\)", page.read_text(encoding="utf-8"))
    missing = [
        f"{file}#{anchor}"
        for file, anchor in targets
        if (file or page.name).endswith(".md")
        and anchor not in anchors(page.parent / file if file else page)
    ]
    assert missing == []


@pytest.mark.parametrize("figure", FIGURES, ids=name)
def test_figures_name_files_that_exist(figure: Path) -> None:
    named = re.findall(r'class="file"[^>]*>([^<]+)<', figure.read_text(encoding="utf-8"))
    assert named
    assert [file for file in named if not (ROOT / file).exists()] == []
