"""Measures the bare limit: JPEG decode, ONNX Runtime and PNG encode in a loop, without a server.

    python -m bench.limit model_repository/NAME/1/model.onnx photo.jpg [--seconds 4]

The cores are shared out in two ways: one loop whose network takes them all, and a loop for each
core in a process of its own. The better of the two in images per second is the limit.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from bench import record
from bench.peers.network import Network
from bench.record import summary
from service.core.engines.cores import available_cores

_WARM = 3
_START_S = 60.0
_begin: Barrier
"""Lets the processes begin together; each has it from the start."""


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
    words = (str(model), image.read_bytes(), threads, seconds)
    with ProcessPoolExecutor(loops, spawn, _share, (spawn.Barrier(loops),)) as pool:
        running = [pool.submit(_loop, *words) for _ in range(loops)]
        try:
            times = [one.result() for one in running]
        except Exception as error:  # whatever ONNX Runtime raises, or the end of a process
            raise RuntimeError(f"the bare limit does not run with {model}: {error}") from error
    return {
        "loops": loops,
        "threads": threads,
        # A loop ends with its last image, a little after `seconds`: each counts for itself.
        "images_per_s": round(sum(len(own) / sum(own) for own in times), 2),
        "latency": summary([second for own in times for second in own]),
    }


def _share(barrier: Barrier) -> None:
    global _begin
    _begin = barrier


def _loop(model: str, body: bytes, threads: int, seconds: float) -> list[float]:
    try:
        network = Network(model, threads)
        for _ in range(_WARM):
            network.segment(body)
    except Exception:
        _begin.abort()  # the others wait for this one
        raise
    _begin.wait(_START_S)
    times = []
    until = time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        network.segment(body)
        times.append(time.perf_counter() - started)
    return times


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
