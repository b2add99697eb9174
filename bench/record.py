"""Writes what every result says besides its numbers: machine, versions, date and revision.

Imports nothing that takes long to load or starts threads: the load generator uses it, too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cli._simulation import percentile

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "pillow",
             "simplejpeg", "fastapi", "uvicorn", "grpcio", "protobuf")  # fmt: skip
_CPU_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Instruction sets that change how fast a convolution is."""


def write(path: Path, measured: dict[str, Any], *, announce: bool = True) -> None:
    """Writes JSON; an older result is replaced, for git keeps it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": revision(Path(__file__).parent),
        "machine": machine(),
        "versions": _versions(),
        **measured,
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    if announce:
        print(path)


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """Makes the parser of a script, whose docstring is its help as it stands."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def summary(seconds: Sequence[float]) -> dict[str, float | None]:
    """Gives percentiles, mean and least in milliseconds, and how many; None of nothing."""
    values = sorted(seconds)
    found: dict[str, float | None] = {
        f"p{percent}_ms": _ms(percentile(values, percent)) if values else None
        for percent in (50, 95, 99)
    }
    found["mean_ms"] = _ms(sum(values) / len(values)) if values else None
    found["min_ms"] = _ms(values[0]) if values else None
    return {**found, "count": len(values)}


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    """Gives its name, and in brackets its flags that matter."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    flags = [flag for flag in _CPU_FLAGS if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.processor())} ({', '.join(flags)})"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def revision(folder: Path) -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
