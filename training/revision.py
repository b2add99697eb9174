"""Which source a run came from."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_revision() -> str:
    """Short hash of HEAD, `+` appended when tracked files have changes; `unknown` without git."""
    here = Path(__file__).parent
    try:
        revision = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+" if changed else "")


def _git(where: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=where, check=True, capture_output=True, text=True)
    return done.stdout.strip()
