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
    missing: list[str] = []
    for index, network in enumerate(chosen):
        size = scale.sizes[0] if scale.narrow else _SIZES.get(network.name, scale.sizes[0])
        keys = [key for key in _keys(network, scale) if not result.has(PART, key)]
        own = budget.share(len(chosen) - index)
        if keys and own.left_s:
            keys = _measure_one(network, size, keys, provider, scale, result, own, folder)
        missing += [f"{key['network']} {key['transport']} {key['load']}" for key in keys]
    result.set(PART, not_reached=missing)


def _keys(network: Exported, scale: Scale) -> list[dict[str, Any]]:
    loads = [f"{count} connections" for count in scale.connections]
    return [
        {"network": network.name, "transport": transport, "load": load}
        for transport in ("rest", "grpc")
        for load in (*loads, f"Poisson, {LOAD} of the capacity")
    ]


def _measure_one(
    network: Exported,
    size: Size,
    keys: list[dict[str, Any]],
    provider: str,
    scale: Scale,
    result: Result,
    budget: Budget,
    folder: Path,
) -> list[dict[str, Any]]:
    """Returns the keys that there was no time for."""
    from bench.segment_load import Server

    bare = bare_session(network, size, provider, scale)
    result.set(PART, **{f"session of {network.name}": bare})
    body = folder / f"{network.name}.jpg"
    body.write_bytes(jpeg(size))
    server = Server(
        network.repository, f"--provider={provider}", f"--warm-up-sizes={size[0]}x{size[1]}"
    )
    addresses = {"rest": f"{server.url}/segment", "grpc": server.target}
    missing = []
    try:
        for key in keys:
            if not budget.left_s:
                missing.append(key)
                continue
            with device.watching(provider) as busy:
                found = _offer(key, addresses[key["transport"]], body, scale, result)
            result.add(PART, {
                **key, "size": list(size), **found, "device_busy": busy.mean,
                "of_session": round(found["answered_per_s"] / bare["images_per_s"], 3),
            })  # fmt: skip
    finally:
        server.stop()
    return missing


def _offer(
    key: dict[str, Any], address: str, body: Path, scale: Scale, result: Result
) -> dict[str, Any]:
    most = max(1, len(os.sched_getaffinity(0)) // 4)
    transport, load = key["transport"], key["load"]
    if load.endswith(" connections"):
        count = int(load.split()[0])
        return generators.closed(
            transport, address, body, count, scale.closed_s, scale.warm_s, most
        )
    closed = [
        row["answered_per_s"]
        for row in result.rows(PART)
        if (row["network"], row["transport"]) == (key["network"], transport)
    ]
    rate = LOAD * max(closed)
    return generators.poisson(transport, address, body, rate, scale.open_s, scale.warm_s, most)


def bare_session(network: Exported, size: Size, provider: str, scale: Scale) -> dict[str, Any]:
    """Images a second from the host's memory and back, all instances at once, best batch first."""
    from service.core.engines.choice import open_network
    from service.core.engines.cores import available_cores, plan

    opened = open_network(
        network.fp32, provider=provider, engine="onnxruntime", plan=plan(available_cores())
    )
    speeds = {}
    for count in _BARE_BATCHES[: 2 if scale.narrow else None]:
        images = batch_of(count, size)
        for instance in opened.instances:
            instance.run(images)
        done = [0] * len(opened.instances)
        begun = time.perf_counter()

        def loop(
            place: int,
            images: Any = images,
            done: list[int] = done,
            end: float = begun + scale.closed_s / 2,
        ) -> None:
            while time.perf_counter() < end:
                opened.instances[place].run(images)
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
