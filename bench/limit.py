"""The bare limit: JPEG decode, ONNX Runtime and PNG encode in a loop, with no server around.

    python -m bench.limit model_repository/NAME/1/model.onnx photo.jpg [--seconds 4]

Two ways to share out the cores: one loop whose network takes them all, and a loop for each core in
a process of its own. The better of the two in images per second is the limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from bench.load import percentiles
from bench.peers.picture import Network
from service.core.engines.cores import available_cores

_WARM = 3
_START_S = 60.0


def measure(model: Path, picture: Path, loops: int, threads: int, seconds: float) -> dict[str, Any]:
    """`loops` processes, begun together, each with a network of `threads` threads."""
    # Not forked: onnxruntime's threads do not survive it.
    spawn = multiprocessing.get_context("spawn")
    begin = spawn.Barrier(loops)
    found: Queue[list[float]] = spawn.Queue()
    words = (str(model), picture.read_bytes(), threads, seconds, begin, found)
    processes = [spawn.Process(target=_loop, args=words) for _ in range(loops)]
    for process in processes:
        process.start()
    try:
        times = [found.get(timeout=_START_S + 2 * seconds) for _ in processes]
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return {
        "loops": loops,
        "threads": threads,
        # A loop ends with its last image, a little after `seconds`: each counts for itself.
        "images_per_s": round(sum(len(own) / sum(own) for own in times), 2),
        "latency": percentiles([second for own in times for second in own]),
    }


def _loop(
    model: str,
    body: bytes,
    threads: int,
    seconds: float,
    begin: Barrier,
    found: Queue[list[float]],
) -> None:
    network = Network(model, threads)
    for _ in range(_WARM):
        network.segment(body)
    begin.wait(_START_S)
    times = []
    until = time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        network.segment(body)
        times.append(time.perf_counter() - started)
    found.put(times)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.limit", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path, help="a JPEG")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each of the two ways")
    args = parser.parse_args(words)
    cores = available_cores()
    ways = [(1, cores)] if cores == 1 else [(1, cores), (cores, 1)]
    rows = [measure(args.model, args.picture, *way, args.seconds) for way in ways]
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
