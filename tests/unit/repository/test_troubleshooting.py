"""docs/troubleshooting.md quotes texts that the program says."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.unit.repository.pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PACKAGES = ("cli", "fcn_client", "model", "service", "training")
QUOTED = re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
NOT_OURS = {"Permission denied"}
"""Texts of the system."""


@cache
def texts() -> tuple[str, ...]:
    """Every text in the code: of one with values in it, the parts around them."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return tuple(found)


def said(fragment: str) -> bool:
    return any(fragment in text for text in texts())


def test_there_are_quotations() -> None:
    assert len(QUOTED) > 30
    assert not said("this is said nowhere, and would be found")


@pytest.mark.parametrize("quoted", sorted(set(QUOTED) - NOT_OURS))
def test_quoted_texts_are_said(quoted: str) -> None:
    for part in quoted.split("…"):
        fragment = part.strip()
        assert len(fragment) >= 4
        assert said(fragment), fragment
