"""Measures JPEG bytes to PNG label map through the server, at rising load over REST and gRPC.

Beside it stands the bare session: the server's own network without a server, at the best of some
batch sizes, from the host's memory and back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bench import images, servers, stages
from bench.gpu.networks import Exported, Scale
from bench.images import Size, UInt8Array
from bench.servers import ROOT
from service.config import SegmenterConfig
from service.core.engines.choice import open_network
from service.core.engines.cores import available_cores
from service.core.types import Instance, Observer

_READY_S = 300.0


def measure(exported: list[Exported], provider: str, scale: Scale) -> dict[str, Any]:
    """Gives a row for each load of a network over each transport, and the bare sessions."""
    rows: list[dict[str, Any]] = []
    bare: dict[str, Any] = {}
    for network in exported:
        if network.name not in scale.served:
            continue
        # The paper's network at the paper's size, the shipped one at its own.
        size = scale.sizes[0 if network.name == "vgg16" else -1]
        bare[network.name] = bare_session(network, size, provider, scale)
        flags = (f"--provider={provider}", f"--warm-up-sizes={size[0]}x{size[1]}")
        command = servers.fcn_serve(ROOT, network.fp32, flags=flags)
        for row in stages.measure(
            command, [size], scale.connections, scale.closed_s, ready_s=_READY_S
        ):
            share = round(row["answered_per_s"] / bare[network.name]["images_per_s"], 3)
            rows.append({"network": network.name, **row, "of_session": share})
    return {"sessions": bare, "rows": rows}


def bare_session(network: Exported, size: Size, provider: str, scale: Scale) -> dict[str, Any]:
    """Counts images a second with all instances at once."""
    opened = open_network(
        SegmenterConfig(provider=provider), available_cores(), Observer(), network.fp32
    )
    speeds = {}
    for count in scale.batches:
        batch = images.batch(count, size)
        for instance in opened.instances:
            instance.run(batch)
        begun = time.perf_counter()
        loop = partial(_runs, batch=batch, until=begun + scale.closed_s / 2)
        with ThreadPoolExecutor(len(opened.instances)) as pool:
            done = sum(pool.map(loop, opened.instances))
        speeds[count] = round(count * done / (time.perf_counter() - begun), 2)
    best = max(speeds, key=lambda count: speeds[count])
    return {
        "images_per_s": speeds[best], "batch": best, "by_batch": speeds,
        "precision": opened.contract.precision, "instances": len(opened.instances),
    }  # fmt: skip


def _runs(instance: Instance, batch: UInt8Array, until: float) -> int:
    """Counts the runs of an instance until then."""
    count = 0
    while time.perf_counter() < until:
        instance.run(batch)
        count += 1
    return count


def table(parts: dict[str, Any]) -> Iterator[str]:
    """Writes lines of Markdown, if the part was measured."""
    rows = parts.get("served", {}).get("rows", ())
    for name in dict.fromkeys(row["network"] for row in rows):
        yield f"\n{name}:\n"
        yield from stages.table([row for row in rows if row["network"] == name])
