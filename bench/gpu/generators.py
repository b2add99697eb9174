"""Load from several processes: one of them would be the bottleneck that is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

_MODULES = {"rest": "bench.load", "grpc": "bench.gpu.rpc_load"}
_PER_PROCESS = 8
"""Connections of a closed loop that share a process."""
_SUMS = ("offered_per_s", "answered_per_s", "goodput_per_s", "answered", "refused", "expired",
         "hung_up", "other_errors")  # fmt: skip


def closed(
    transport: str, url: str, body: Path, connections: int, seconds: float, warm: float, most: int
) -> dict[str, Any]:
    """`most`: processes."""
    count = min(most, -(-connections // _PER_PROCESS))
    shares = [len(part) for part in np.array_split(range(connections), count)]
    words = [["--connections", str(share)] for share in shares]
    return _run(transport, url, body, words, seconds, warm)


def poisson(
    transport: str, url: str, body: Path, rate: float, seconds: float, warm: float, most: int
) -> dict[str, Any]:
    """Poisson arrivals of each add to Poisson arrivals of all."""
    words = [["--rate", str(rate / most), "--seed", str(seed)] for seed in range(most)]
    return _run(transport, url, body, words, seconds, warm)


def _run(
    transport: str, url: str, body: Path, words: list[list[str]], seconds: float, warm: float
) -> dict[str, Any]:
    """Raises: RuntimeError with what a generator said when it failed."""
    common = ["--seconds", str(seconds), "--warm", str(warm), "--stages"]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", _MODULES[transport], url, str(body), *own, *common],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for own in words
    ]  # fmt: skip
    found = []
    for process in running:
        out, said = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{_MODULES[transport]} failed: {said.strip()[-500:]}")
        found.append(json.loads(out))
    return merged(found)


def merged(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums of rates and counts, percentiles of all latencies and stages together."""
    latencies = [value for each in found for value in each["latencies_ms"]]
    stages: dict[str, list[float]] = defaultdict(list)
    for each in found:
        for stage, values in each["stages_ms"].items():
            stages[stage] += values
    lags = [each["lag_p99_ms"] for each in found if each["lag_p99_ms"] is not None]
    return {
        **{name: round(sum(each[name] for each in found), 2) for name in _SUMS},
        "latency": _percentiles(latencies),
        "stages": {stage: _percentiles(values) for stage, values in stages.items()},
        "generators": len(found),
        "lag_p99_ms": max(lags, default=None),
    }


def _percentiles(values: list[float]) -> dict[str, float | None]:
    if not values:
        return {"p50_ms": None, "p99_ms": None}
    p50, p99 = np.percentile(values, (50, 99))
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}
