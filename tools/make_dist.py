"""Builds the server's and the client's distributions of a commit into dist/: `make dist`.

Whoever builds the same commit gets the same bytes: files come from git and not from the folder, all
are as old as the commit, and setuptools has the version of docker/requirements-build.txt. What
setuptools leaves to chance in an sdist, owners, modes and times, is set here.
Source: https://reproducible-builds.org/docs/source-date-epoch/

`make dist RELEASE=1` builds only what is ready to be released; CONTRIBUTING.md has the list.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PROJECTS: Final = (".", "fcn_client")
PINS: Final = ROOT / "docker" / "requirements-build.txt"
SUMS: Final = "SHA256SUMS"


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def checkout(folder: Path) -> None:
    """Writes the files of HEAD, without what git does not know."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")


def build(
    source: Path,
    epoch: int,
    out: Path,
    *,
    isolated: bool = True,
    projects: Sequence[str] = PROJECTS,
) -> list[Path]:
    """Makes an sdist, and a wheel from it, of each project in `source`.

    epoch: seconds since 1970 that all files get. isolated: with the pinned setuptools, from a
    package index; else with the one that is installed here.
    """
    made: list[Path] = []
    for path in source.rglob("*"):  # wheels keep modes, and those depend on who made the files
        path.chmod(0o755 if path.is_dir() else 0o644)
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        # Without their hashes, for `build` asks for a range, which pip does not check by hash.
        constraints.write_text("\n".join(re.findall(r"^[\w.-]+==[\w.]+", PINS.read_text(), re.M)))
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
        environment["PIP_CONSTRAINT"] = str(constraints)
        for project in projects:
            built = Path(folder) / project / "built"
            words = [sys.executable, "-m", "build", "--outdir", str(built), str(source / project)]
            words += [] if isolated else ["--no-isolation"]
            done = subprocess.run(
                words, env=environment, umask=0o022, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"make dist: {done.stdout}{done.stderr}")
            for path in sorted(built.iterdir()):
                if path.name.endswith(".tar.gz"):
                    settle(path, epoch)
                out.mkdir(parents=True, exist_ok=True)
                made.append(Path(shutil.copyfile(path, out / path.name)))
    return made


def settle(sdist: Path, epoch: int) -> None:
    """Packs an sdist again in order of names, all of one time and of nobody."""
    packed = io.BytesIO()
    with (
        tarfile.open(sdist) as before,
        gzip.GzipFile("", "wb", fileobj=packed, mtime=epoch) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before.getmembers(), key=lambda member: member.name):
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mtime, member.pax_headers = epoch, {}
            member.mode = 0o755 if member.isdir() else 0o644
            after.addfile(member, before.extractfile(member) if member.isfile() else None)
    sdist.write_bytes(packed.getvalue())


def unready(
    changelog: str, versions: dict[str, str], tags: list[str], changes: str
) -> Iterator[str]:
    """Says what keeps a commit from being a release.

    versions: of each project. tags: of the commit. changes: `git status` of the folder, in short.
    """
    version = versions["."]
    if len(set(versions.values())) > 1:
        yield f"the versions differ: {versions}"
    if f"v{version}" not in tags:
        yield f"the commit has no tag v{version}: git tag -s v{version}"
    if changes:
        yield "there are changes that are not committed"
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.M):
        yield f"CHANGELOG.md has no heading [{version}] with a date"
    begun = changelog.partition("## [Unreleased]\n")[2].partition("\n## [")[0].strip()
    if begun:
        yield f"CHANGELOG.md has lines under Unreleased: they belong under [{version}]"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.make_dist", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--release", action="store_true", help="refuse what is not ready")
    args = parser.parse_args()
    changes = git("status", "--porcelain", "--untracked-files=no")
    if args.release:
        versions = {
            name: tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"]["version"]
            for name in PROJECTS
        }
        changelog, tags = (ROOT / "CHANGELOG.md").read_text(), git("tag", "--points-at").split()
        if faults := list(unready(changelog, versions, tags, changes)):
            raise SystemExit("\n".join(f"make dist RELEASE=1: {fault}" for fault in faults))
    elif changes:
        sys.stderr.write("make dist: what is not committed is left out\n")
    with tempfile.TemporaryDirectory() as folder:
        checkout(Path(folder))
        made = build(Path(folder), int(git("log", "-1", "--format=%ct")), args.out)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in made]
    (args.out / SUMS).write_text("\n".join(lines) + "\n")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
