"""Runs `bench.load` in processes apart from whoever measures, and puts their results together."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.record import summary
from bench.servers import ROOT

DEADLINE_S = 0.5
"""Answers later than this are no goodput."""
PATIENCE_S = 3.0
"""A client of an open loop hangs up after so long; one of a closed loop waits for its turn."""
_CLOSED_PATIENCE_S = 30.0
FILL_S = 0.9
"""A closed loop runs so long before its answers are counted: then the server is full of work."""
_RATES = ("offered_per_s", "answered_per_s", "goodput_per_s")
_COUNTS = ("answered", "late", "refused", "expired", "hung_up", "other_errors",
           "refusals_with_retry_after")  # fmt: skip

Load = dict[str, Any]
"""Holds what `bench.load` prints."""


def closed(
    url: str, image: Path, connections: int, seconds: float, *, processes: int = 1, **more: Any
) -> Load:
    """Keeps so many connections busy, and counts answers while the server is full of work."""
    processes = min(processes, connections)
    shares = [connections // processes + (n < connections % processes) for n in range(processes)]
    kinds = [["--connections", str(share)] for share in shares]
    return _run(url, image, kinds, seconds, warm_s=FILL_S, patience_s=_CLOSED_PATIENCE_S, **more)


def poisson(
    url: str, image: Path, rate: float, seconds: float, *, seed: int = 0, **more: Any
) -> Load:
    """Sends Poisson arrivals, which are the same for every server: `seed` chooses them."""
    kinds = [["--rate", str(rate), "--seed", str(seed)]]
    return _run(url, image, kinds, seconds, **more)


def _run(
    url: str,
    image: Path,
    kinds: Sequence[Sequence[str]],
    seconds: float,
    *,
    warm_s: float = 1.0,
    patience_s: float = PATIENCE_S,
    content_type: str = "image/jpeg",
    headers: Sequence[str] = (),
    stages: bool = False,
) -> Load:
    """Raises: RuntimeError with what a generator said when it failed."""
    common = ["--seconds", str(seconds), "--warm", str(warm_s), "--content-type", content_type]
    common += ["--deadline", str(DEADLINE_S), "--patience", str(patience_s)]
    common += [word for line in headers for word in ("--header", line)]
    common += ["--stages"] if stages else []
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.load", url, str(image), *kind, *common],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for kind in kinds
    ]
    ended = [(process, *process.communicate()) for process in running]
    for process, _, said in ended:
        if process.returncode:
            raise RuntimeError(f"bench.load failed: {said.strip()[-500:]}")
    return merged([json.loads(out) for _, out, _ in ended])


def merged(found: Sequence[Load]) -> Load:
    """Adds up what several processes measured at the same time."""
    rates = {name: round(math.fsum(each[name] for each in found), 2) for name in _RATES}
    share = round(math.fsum(each["generator_share"] for each in found), 4)
    return {**rates, **_together(found), "generators": len(found), "generator_share": share}


def pooled(rounds: Sequence[Load]) -> Load:
    """Puts rounds together: medians of rates, sums of counts, percentiles over all answers."""
    rates = {name: round(statistics.median(each[name] for each in rounds), 2) for name in _RATES}
    share = round(statistics.mean(each["generator_share"] for each in rounds), 4)
    return {**rates, **_together(rounds), "generator_share": share}


def _together(found: Sequence[Load]) -> Load:
    lists = {
        name: [ms for each in found for ms in each[name]]
        for name in ("latencies_ms", "refusals_ms")
    }
    stages = {
        stage: [ms for each in found for ms in each.get("stages_ms", {}).get(stage, ())]
        for stage in dict.fromkeys(name for each in found for name in each.get("stages_ms", {}))
    }
    return {
        **{name: sum(each[name] for each in found) for name in _COUNTS},
        "latency": _summary_of_ms(lists["latencies_ms"]),
        "refusal": _summary_of_ms(lists["refusals_ms"]),
        "stages": {stage: _summary_of_ms(values) for stage, values in stages.items()},
        "lag_p99_ms": max((each["lag_p99_ms"] or 0.0 for each in found), default=0.0),
        **lists,
        "stages_ms": stages,
    }


def without_lists(load: Load) -> Load:
    """Drops the single times, for a result that people read."""
    return {name: value for name, value in load.items() if not name.endswith("s_ms")}


def _summary_of_ms(values: Sequence[float]) -> dict[str, float | None]:
    return summary([ms / 1e3 for ms in values])
