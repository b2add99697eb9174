"""Measures one slot of `bench.peers`: a server is started, loaded, and gone again within 90 s.

python -m bench.peers.slots '{"part": "steady", "name": "litserve", ...}'
"""

from __future__ import annotations

import io
import json
import signal
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench import generator, limit, servers
from bench.generator import Load
from bench.peers import contenders
from bench.peers.contenders import CONTENDERS, OURS, Contender, Variant
from bench.servers import OWN_DEADLINE_MS, CannotRun, Running
from service.core.engines.cores import available_cores

CONNECTIONS = (1, 8, 32)
STEADY_LOAD = 0.7
OVERLOADS = (2.0, 3.0)
_VARIANT_S = 3.0
_BOUND_S = 0.4
"""A peer that can bound its queue takes in what the limit does in this time."""

Task = dict[str, Any]
"""A slot and the run's settings, as `bench.peers` writes them."""


def run(task: Task) -> dict[str, Any]:
    if task["part"] == "limit":
        return {"ways": limit.ways(Path(task["model"]), Path(task["image"]), task["seconds"])}
    contender = CONTENDERS[task["name"]]
    parts = {"variants": variants, "steady": steady, "overload": overload}
    try:
        return parts[task["part"]](contender, task)
    except CannotRun as error:
        return {"error": str(error)}


def capacity(task: Task) -> float:
    """Measures what the bare limit does now, in images per second."""
    model, image = Path(task["model"]), Path(task["image"])
    return limit.capacity(model, image, min(2, task["seconds"]), task["limit"])


def variants(contender: Contender, task: Task) -> dict[str, Any]:
    """Tries every variant at 8 connections, and chooses that of the most images per second."""
    found = []
    for variant in contender.variants(available_cores()):
        row: dict[str, Any] = {"variant": asdict(variant), "words": str(variant)}
        try:
            with start(contender, variant, task) as server:
                closed_loop(server, task, 8, task["warm"])
                load = closed_loop(server, task, 8, min(_VARIANT_S, task["seconds"]))
                row["images_per_s"] = load["answered_per_s"]
        except CannotRun as error:
            row["error"] = str(error)
        found.append(row)
    working = [row for row in found if "error" not in row]
    if not working:
        raise CannotRun(found[0]["error"])
    best = max(working, key=lambda row: row["images_per_s"])
    return {"rows": found, "chosen": best["variant"], "words": best["words"]}


def steady(contender: Contender, task: Task) -> dict[str, Any]:
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


def overload(contender: Contender, task: Task) -> dict[str, Any]:
    """Offers more than the limit. A peer bounds what it takes in, if it can; ours is set up as
    before, and told a deadline."""
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


def start(
    contender: Contender, variant: Variant, task: Task, bound: int = 0
) -> AbstractContextManager[Running]:
    image = Path(task["image"]).read_bytes()
    return contenders.running(contender, variant, Path(task["model"]), image, bound=bound)


def variant_of(task: Task) -> Variant:
    return Variant(**task["variant"]) if "variant" in task else Variant(1, available_cores())


def labels_equal(png: bytes, task: Task) -> bool:
    """Tells whether the label map is the one that the bare loop gives."""
    from bench.peers.network import Network

    own = Network(task["model"], 1).segment(Path(task["image"]).read_bytes())
    return np.array_equal(label_map(png), label_map(own))


def label_map(png: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image)


def closed_loop(server: Running, task: Task, connections: int, seconds: float) -> Load:
    return generator.closed(server.url, Path(task["image"]), connections, seconds, **said(server))


def open_loop(server: Running, task: Task, rate: float, url: str) -> Load:
    """Sends arrivals that are the same for everyone, and others in each round."""
    return generator.poisson(
        url, Path(task["image"]), rate, task["open_seconds"],
        warm_s=task["warm"], seed=task["round"], **said(server),
    )  # fmt: skip


def said(server: Running) -> dict[str, Any]:
    """Gives the headers by which this server is asked."""
    return {"content_type": server.command.content_type, "headers": server.command.headers}


def settle(server: Running, task: Task) -> float:
    return servers.settle(server.command, Path(task["image"]).read_bytes())


if __name__ == "__main__":
    # Stopped from outside, it still stops its server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(json.dumps(run(json.loads(sys.argv[1]))))
