"""`make dist`: what it packs does not depend on who packs it, and what is no release is refused."""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.unit.repository.pages import ROOT
from tools.make_dist import PROJECTS, settle, unready

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2026-12-24\n\n### Added\n\n- A line.\n"
READY = (CHANGELOG, {".": "0.2.0", "fcn_client": "0.2.0"}, ["v0.2.0", "other"], "")


def sdist(path: Path, names: list[str], when: int, user: str, mode: int) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.mtime, member.uname, member.uid, member.mode = when, user, 1000, mode
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    os.utime(path, (when, when))
    return path


def test_an_sdist_has_nothing_of_who_made_it(tmp_path: Path) -> None:
    one = sdist(tmp_path / "1.tar.gz", ["a/b", "a/c"], 1_000_000, "alice", 0o600)
    other = sdist(tmp_path / "2.tar.gz", ["a/c", "a/b"], 2_000_000, "bob", 0o664)
    for path in (one, other):
        settle(path, 1_700_000_000)
    assert one.read_bytes() == other.read_bytes()
    with tarfile.open(one) as tar:
        assert [(m.name, m.uname, m.mtime, m.mode) for m in tar] == [
            (name, "", 1_700_000_000, 0o644) for name in ("a/b", "a/c")
        ]
        member = tar.extractfile("a/b")
        assert member is not None and member.read() == b"a/b"
    assert gzip.decompress(one.read_bytes())


def test_a_release_is_ready() -> None:
    assert list(unready(*READY)) == []


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (0, CHANGELOG.replace("[0.2.0]", "[0.1.0]"), r"no heading \[0.2.0\] with a date"),
        (0, CHANGELOG.replace(" - 2026-12-24", ""), r"no heading \[0.2.0\] with a date"),
        (0, CHANGELOG.replace("d]\n", "d]\n\n### Fixed\n\n- A line.\n"), "lines under Unreleased"),
        (1, {".": "0.2.0", "fcn_client": "0.1.0"}, "the versions differ"),
        (2, ["v0.1.0"], "git tag -s v0.2.0"),
        (3, " M README.md", "not committed"),
    ],
)
def test_what_is_no_release_is_said(place: int, value: object, says: str) -> None:
    given = [value if n == place else part for n, part in enumerate(READY)]
    (fault,) = unready(*given)  # type: ignore[arg-type]
    assert re.search(says, fault)


def test_the_build_tool_is_pinned() -> None:
    pins = (ROOT / "docker" / "requirements-build.txt").read_text()
    for project in PROJECTS:
        wanted = tomllib.loads((ROOT / project / "pyproject.toml").read_text())["build-system"]
        for requirement in wanted["requires"]:
            assert re.search(rf"^{re.split('[><=]', requirement)[0]}==", pins, re.M)
