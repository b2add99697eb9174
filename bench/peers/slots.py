"""One slot of `bench.peers`: a server is started, loaded, and gone again. Less than 90 s.

python -m bench.peers.slots '{"part": "steady", "name": "litserve", ...}'
"""

from __future__ import annotations

import http.client
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench import contenders
from bench.contenders import CONTENDERS, OURS, ROOT, CannotRun, Contender, Running, Variant
from service.core.engines.cores import available_cores

CONNECTIONS = (1, 8, 32)
STEADY_LOAD = 0.7
OVERLOADS = (2.0, 3.0)
DEADLINE_S = 0.5
"""Answers later than this are no goodput."""
WRK, OWN = "wrk", "bench.load"
OWN_DEADLINE_MS = 450
"""What our server is told under overload: a client's 0.5 s less the way there and back."""
PATIENCE_S = 3.0
_VARIANT_S = 3.0
_FILL_S = 0.9
"""A closed loop runs so long before its answers are counted."""
_BOUND_S = 0.4
"""A peer that can bound its queue takes in what the limit does in this time."""


def run(task: dict[str, Any]) -> dict[str, Any]:
    if task["part"] == "limit":
        return {"ways": limit(task)}
    contender = CONTENDERS[task["name"]]
    parts = {"variants": variants, "steady": steady, "overload": overload}
    try:
        return parts[task["part"]](contender, task)
    except CannotRun as error:
        return {"error": str(error)}


def capacity(task: dict[str, Any]) -> float:
    """What the bare limit does now, in images per second of its better way."""
    return float(
        max(way["images_per_s"] for way in limit(task | {"seconds": min(2, task["seconds"])}))
    )


def limit(task: dict[str, Any]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.limit", task["model"], task["picture"]]
        + ["--seconds", str(task["seconds"])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def variants(contender: Contender, task: dict[str, Any]) -> dict[str, Any]:
    """Images per second at 8 connections of every variant, and the best of them."""
    found = []
    for variant in contender.variants(available_cores()):
        row: dict[str, Any] = {"variant": asdict(variant), "words": str(variant)}
        try:
            with start(contender, variant, task) as server:
                closed_loop(server, task, 8, task["warm"])
                row |= closed_loop(server, task, 8, min(_VARIANT_S, task["seconds"]))
        except CannotRun as error:
            row["error"] = str(error)
        found.append(row)
    working = [row for row in found if "error" not in row]
    if not working:
        raise CannotRun(found[0]["error"])
    best = max(working, key=lambda row: row["images_per_s"])
    return {"rows": found, "chosen": best["variant"], "words": best["words"]}


def steady(contender: Contender, task: dict[str, Any]) -> dict[str, Any]:
    before = capacity(task)
    with start(contender, variant_of(task), task) as server:
        found: dict[str, Any] = {
            "version": contenders.version(contender),
            "start_s": server.start_s,
            "labels_equal": labels_equal(server.png, task),
            "closed": {},
        }
        closed_loop(server, task, 8, task["warm"])
        for connections in CONNECTIONS:
            found["closed"][connections] = closed_loop(server, task, connections, task["seconds"])
            settle(server, task)
        found["open"] = {STEADY_LOAD: open_loop(server, task, STEADY_LOAD * before, server.url)}
        found["memory_mib"] = server.memory_mib()
    found["limits_per_s"] = [before, capacity(task)]
    return found


def overload(contender: Contender, task: dict[str, Any]) -> dict[str, Any]:
    """A peer bounds what it takes in, if it can; ours is set up as before, and told a deadline."""
    before = capacity(task)
    bound = 0 if contender is OURS else max(2, round(_BOUND_S * before))
    found: dict[str, Any] = {"bound": bound if contender.overload else None, "open": {}}
    with start(contender, variant_of(task), task, bound) as server:
        url = f"{server.url}?deadline_ms={OWN_DEADLINE_MS}" if contender is OURS else server.url
        closed_loop(server, task, 8, task["warm"])
        settle(server, task)
        for factor in OVERLOADS:
            found["open"][factor] = open_loop(server, task, factor * before, url)
            found["open"][factor]["recovery_s"] = settle(server, task)
        found["memory_mib"] = server.memory_mib()
    found["limits_per_s"] = [before, capacity(task)]
    return found


def start(contender: Contender, variant: Variant, task: dict[str, Any], bound: int = 0) -> Any:
    picture = Path(task["picture"]).read_bytes()
    return contenders.running(contender, variant, Path(task["model"]), picture, limit=bound)


def variant_of(task: dict[str, Any]) -> Variant:
    return Variant(**task["variant"]) if "variant" in task else Variant(1, available_cores())


def labels_equal(png: bytes, task: dict[str, Any]) -> bool:
    """Whether the label map is the one that the bare loop gives."""
    from bench.peers.picture import Network

    own = Network(task["model"], 1).segment(Path(task["picture"]).read_bytes())
    return np.array_equal(label_map(png), label_map(own))


def label_map(png: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image)


def closed_loop_tool() -> str:
    """wrk where it is installed, else our own."""
    return WRK if shutil.which(WRK) else OWN


def closed_loop(
    server: Running, task: dict[str, Any], connections: int, seconds: float
) -> dict[str, Any]:
    """images_per_s, p50_ms, p95_ms, p99_ms, refused, broken."""
    if task["tool"] == WRK:
        return wrk(server, task, connections, seconds)
    found = bench_load(
        server, task, server.url, "--connections", connections, seconds, warm_s=_FILL_S
    )
    return {
        "images_per_s": found["answered_per_s"],
        "refused": found["refused"] + found["other_errors"],
        "broken": found["hung_up"],
        **found["latency"],
    }


def wrk(server: Running, task: dict[str, Any], connections: int, seconds: float) -> dict[str, Any]:
    lines = (f"Content-Type: {server.contender.content_type}", *server.contender.headers)
    return wrk_says(server.url, task["picture"], lines, connections, seconds)


def wrk_says(
    url: str, picture: str | Path, headers: Sequence[str], connections: int, seconds: float
) -> dict[str, Any]:
    """images_per_s, p50_ms, p95_ms, p99_ms, refused, broken. headers: whole lines.

    Answers are counted in a window that begins when the server is full of work and ends when it
    still is. wrk itself counts from the first request, and so forgets what is under way at the end:
    of 4 s an image per core of 62 ms was 0.8 % on average, and a batch of 8 on both cores 3 %,
    while the bare limit counts each of its loops to its own last image. Percentiles are wrk's, of
    all of its time. Raises: CannotRun.
    """
    done = subprocess.run(
        ["wrk", "-t", "1", "-c", str(connections), "-d", f"{math.ceil(_FILL_S + seconds)}s"]
        + ["--timeout", "30s", "-s", str(ROOT / "bench" / "wrk.lua"), url],
        env={
            **os.environ,
            "BENCH_BODY": str(picture),
            "BENCH_HEADERS": "\n".join(headers),
            "BENCH_WARM_S": str(_FILL_S),
            "BENCH_SECONDS": str(seconds),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    said = re.search(r"^JSON (.+)$", done.stdout, re.MULTILINE)
    if said is None:
        raise CannotRun(f"wrk gives no result: {(done.stderr or done.stdout)[-200:]}")
    found: dict[str, Any] = json.loads(said[1])
    return found


def open_loop(server: Running, task: dict[str, Any], rate: float, url: str) -> dict[str, Any]:
    """What `bench.load` prints; arrivals are the same for everyone, another row each round."""
    return bench_load(server, task, url, "--rate", rate, task["open_seconds"], warm_s=task["warm"])


def bench_load(
    server: Running,
    task: dict[str, Any],
    url: str,
    kind: str,
    amount: float,
    seconds: float,
    *,
    warm_s: float,
) -> dict[str, Any]:
    headers = [word for line in server.contender.headers for word in ("--header", line)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", url, task["picture"], kind, str(amount), *headers]
        + ["--content-type", server.contender.content_type, "--seconds", str(seconds)]
        + ["--warm", str(warm_s), "--deadline", str(DEADLINE_S), "--patience", str(PATIENCE_S)]
        + ["--seed", str(task["round"])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def settle(server: Running, task: dict[str, Any]) -> float:
    """Seconds until the server answers a single request within 0.5 s again; 15 at most."""
    picture = Path(task["picture"]).read_bytes()
    began = time.perf_counter()
    while (waited := time.perf_counter() - began) < 15:
        asked = time.perf_counter()
        try:
            contenders.ask(server.contender, server.url, picture, 15)
        except (OSError, ValueError, http.client.HTTPException):
            time.sleep(0.02)
            continue
        if time.perf_counter() - asked < DEADLINE_S:
            break
    return round(waited, 2)


if __name__ == "__main__":
    # Stopped from outside, it still stops its server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = json.loads(sys.argv[1])
    result = run(chosen)
    Path(chosen["out"]).write_text(json.dumps(result))
