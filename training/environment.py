"""Names the source, the libraries and the hardware that a run's result may depend on."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

_LIBRARIES = ("numpy", "pillow", "torch")
_CPUINFO = Path("/proc/cpuinfo")


def git_revision() -> str:
    """Read the short hash of HEAD, `+` appended when tracked files have changes; `unknown` without
    git."""
    here = Path(__file__).parent
    try:
        revision = _git(here, "rev-parse", "--short=12", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+" if changed else "")


def environment(device: torch.device) -> dict[str, str]:
    """Collect versions by library, and the name of the device that trains."""
    found = {name: metadata.version(name) for name in _LIBRARIES}
    found["python"] = platform.python_version()
    if device.type == "cuda":
        found["cuda"] = str(torch.version.cuda)
        found["device"] = torch.cuda.get_device_name(device)
    else:
        found["device"] = _cpu_name()
    return found


def _cpu_name() -> str:
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(where: Path, *args: str) -> str:
    command = ["git", *args]  # of the user's PATH; no shell, and all arguments are ours
    done = subprocess.run(command, cwd=where, check=True, capture_output=True, text=True)  # nosec B603
    return done.stdout.strip()
