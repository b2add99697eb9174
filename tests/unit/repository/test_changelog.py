"""The changelog, the package and its metadata tell of the same version."""

from __future__ import annotations

import re
import tomllib
from datetime import date
from importlib.metadata import version

from tests.unit.repository.pages import ROOT

_HEADING = re.compile(r"^## \[(?P<version>[^]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)
_KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_newest_release_is_the_package() -> None:
    headings = list(_HEADING.finditer((ROOT / "CHANGELOG.md").read_text()))
    assert headings[0]["version"] == "Unreleased"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert headings[1]["version"] == project["version"] == version("fcn-serve")


def test_releases_have_dates_newest_first() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    dates = [date.fromisoformat(found["date"]) for found in list(_HEADING.finditer(text))[1:]]
    assert dates == sorted(dates, reverse=True)
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= _KINDS
