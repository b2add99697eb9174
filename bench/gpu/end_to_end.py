"""From a JPEG's bytes to a PNG label map through the server, at rising load over REST and gRPC.

Load generators run on the same cores as the server. The bare session is the server's own network
without a server: the best of some batch sizes.
"""

from __future__ import annotations

import io
import os
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

from bench.gpu import device, generators, networks
from bench.gpu.latency import Scale, batch_of
from bench.gpu.networks import Exported, Size
from bench.gpu.report import Budget, Result

PART = "end_to_end"
LOAD = 0.7
"""Of the capacity, in the open loop."""
_BARE_BATCHES = (1, 4, 8, 16)
_SIZES: dict[str, Size] = {"fcn8s-vgg16": (500, 500), "fcn8s-mobilenet_v1": (360, 480)}
"""Networks that are served, and the size of what they are sent."""


def measure(
    exported: list[Exported],
    provider: str,
    scale: Scale,
    result: Result,
    budget: Budget,
    folder: Path,
) -> None:
    """Rows of `PART`: each load of a network over each transport."""
    chosen = [network for network in exported if network.name in _SIZES] or exported[:1]
    missing = []
    for index, network in enumerate(chosen):
        own = budget.share(len(chosen) - index)
        size = scale.sizes[0] if scale.narrow else _SIZES.get(network.name, scale.sizes[0])
        if result.has(PART, {"network": network.name}) or not own.left_s:
            missing += [] if own.left_s else [network.name]
            continue
        missing += _measure_one(network, size, provider, scale, result, own, folder)
    result.set(PART, not_reached=missing)


def _measure_one(
    network: Exported,
    size: Size,
    provider: str,
    scale: Scale,
    result: Result,
    budget: Budget,
    folder: Path,
) -> list[str]:
    from bench.segment_load import Server

    bare = bare_session(network, size, provider, scale)
    result.set(PART, **{f"session of {network.name}": bare})
    body = folder / f"{network.name}.jpg"
    body.write_bytes(jpeg(size))
    server = Server(
        network.repository, f"--provider={provider}", f"--warm-up-sizes={size[0]}x{size[1]}"
    )
    most = max(1, len(os.sched_getaffinity(0)) // 4)
    missing = []
    try:
        for transport, url in (("rest", f"{server.url}/segment"), ("grpc", server.target)):
            capacity = 0.0
            loads: list[tuple[str, int | None]] = [
                (f"{count} connections", count) for count in scale.connections
            ]
            for name, connections in [*loads, (f"Poisson, {LOAD} of the capacity", None)]:
                if not budget.left_s:
                    missing.append(f"{network.name} {transport} {name}")
                    continue
                with device.watching(provider) as busy:
                    if connections is not None:
                        found = generators.closed(
                            transport, url, body, connections, scale.closed_s, scale.warm_s, most
                        )
                        capacity = max(capacity, found["answered_per_s"])
                    else:
                        found = generators.poisson(
                            transport, url, body, LOAD * capacity, scale.open_s, scale.warm_s, most
                        )
                result.add(PART, {
                    "network": network.name, "size": list(size), "transport": transport,
                    "load": name, **found, "device_busy": busy.mean,
                    "of_session": round(found["answered_per_s"] / bare["images_per_s"], 3),
                })  # fmt: skip
    finally:
        server.stop()
    return missing


def bare_session(network: Exported, size: Size, provider: str, scale: Scale) -> dict[str, Any]:
    """Images a second from the host's memory and back, all instances at once, best batch first."""
    from service.core.cores import available_cores, plan
    from service.core.engine import open_network

    opened = open_network(
        network.fp32, provider=provider, engine="onnxruntime", plan=plan(available_cores())
    )
    speeds = {}
    for count in _BARE_BATCHES[: 2 if scale.narrow else None]:
        images = batch_of(count, size)
        for run in opened.instances:
            run(images)
        done = [0] * len(opened.instances)
        begun = time.perf_counter()

        def loop(
            place: int,
            images: Any = images,
            done: list[int] = done,
            end: float = begun + scale.closed_s / 2,
        ) -> None:
            while time.perf_counter() < end:
                opened.instances[place](images)
                done[place] += 1

        threads = [threading.Thread(target=loop, args=(place,)) for place in range(len(done))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        speeds[count] = round(count * sum(done) / (time.perf_counter() - begun), 2)
    best = max(speeds, key=lambda count: speeds[count])
    return {
        "images_per_s": speeds[best], "batch": best, "by_batch": speeds,
        "precision": opened.contract.precision, "instances": len(opened.instances),
    }  # fmt: skip


def jpeg(size: Size) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(networks.picture(size)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
