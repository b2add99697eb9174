"""What every result says besides its numbers: machine, versions, date, revision."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "pillow",
             "simplejpeg", "fastapi", "uvicorn", "grpcio")  # fmt: skip


def write(path: Path, measured: dict[str, Any], *, announce: bool = True) -> None:
    """As JSON, with where and when; an older result is replaced (git keeps it)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "revision": _revision(),
        "machine": machine(),
        "versions": _versions(),
        **measured,
    }
    path.write_text(json.dumps(result, indent=2) + "\n")
    if announce:
        print(path)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: p50, p99, mean, least, and how many."""
    values = np.asarray(seconds) * 1e3
    return {
        "p50_ms": round(float(np.percentile(values, 50)), 3),
        "p99_ms": round(float(np.percentile(values, 99)), 3),
        "mean_ms": round(float(values.mean()), 3),
        "min_ms": round(float(values.min()), 3),
        "count": len(values),
    }


def machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_1min_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    """Name and what of its instruction set matters to a convolution."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    flags = [f for f in ("avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16")
             if f in fields.get("flags", "").split()]  # fmt: skip
    return f"{fields.get('model name', platform.processor())} ({', '.join(flags)})"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _revision() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
