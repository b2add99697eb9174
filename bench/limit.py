"""Measures the bare limit: JPEG decode, ONNX Runtime and PNG encode in a loop, without a server.

    python -m bench.limit model_repository/NAME/1/model.onnx photo.jpg [--seconds 4]

The cores are shared out in two ways: one loop whose network takes them all, and a loop for each
core in a process of its own. The better of the two in images per second is the limit.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import sys
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from bench import record
from bench.peers.network import Network
from bench.record import summary
from service.core.engines.cores import available_cores

_WARM = 3
_START_S = 60.0


def ways(model: Path, image: Path, seconds: float) -> list[dict[str, Any]]:
    """Measures both ways, or the only one where there is one core."""
    cores = available_cores()
    pairs = [(1, cores)] if cores == 1 else [(1, cores), (cores, 1)]
    return [measure(model, image, *pair, seconds) for pair in pairs]


def capacity(model: Path, image: Path, seconds: float) -> float:
    """Gives the images per second of the better way, now."""
    return float(max(way["images_per_s"] for way in ways(model, image, seconds)))


def measure(model: Path, image: Path, loops: int, threads: int, seconds: float) -> dict[str, Any]:
    """Runs `loops` processes, begun together, each with a network of `threads` threads.

    Raises: RuntimeError if one of them ends without a result.
    """
    # Not forked: onnxruntime's threads do not survive it.
    spawn = multiprocessing.get_context("spawn")
    begin = spawn.Barrier(loops)
    found: Queue[list[float]] = spawn.Queue()
    words = (str(model), image.read_bytes(), threads, seconds, begin, found)
    processes = [spawn.Process(target=_loop, args=words) for _ in range(loops)]
    for process in processes:
        process.start()
    times: list[list[float]] = []
    try:
        while len(times) < loops:
            try:
                times.append(found.get(timeout=1))
            except queue.Empty:
                if any(process.exitcode for process in processes):
                    raise RuntimeError(f"the bare limit does not run with {model}") from None
    finally:
        for process in processes:
            if len(times) < loops:
                process.kill()  # it waits for all to begin
            process.join()
    return {
        "loops": loops,
        "threads": threads,
        # A loop ends with its last image, a little after `seconds`: each counts for itself.
        "images_per_s": round(sum(len(own) / sum(own) for own in times), 2),
        "latency": summary([second for own in times for second in own]),
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
    parser = record.parser("bench.limit", __doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path, help="a JPEG")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each of the two ways")
    args = parser.parse_args(words)
    print(json.dumps(ways(args.model, args.image, args.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
