"""Measures the bare limit: JPEG decode, network and PNG encode in a loop, without a server.

    python -m bench.limit model_repository/NAME/1/model.onnx photo.jpg [--seconds 4] [--out FILE]

Every engine and precision that this machine has, and that keeps the labels, runs in two ways: one
loop whose network takes all cores, and a loop for each core in a process of its own. The best of
them all in images per second is the limit.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from bench import record
from bench.peers.network import decode, encode, palette
from bench.record import summary
from service.config import SegmenterConfig
from service.core.engines.choice import open_network
from service.core.engines.cores import available_cores, cpu_flags
from service.core.types import Observer
from service.tuning import installed_engines, ways_of

_WARM = 3
_START_S = 60.0
_begin: Barrier
"""Lets the processes begin together; each has it from the start."""


def ways(model: Path, image: Path, seconds: float) -> list[dict[str, Any]]:
    """Measures every way; one that is refused is told on stderr and left out. model: a model.onnx,
    or a file beside it.

    Raises: RuntimeError when all are refused.
    """
    model = model.with_name("model.onnx")
    cores = available_cores()
    found: list[dict[str, Any]] = []
    refused: RuntimeError | None = None
    for engine, precision in ways_of(model, installed_engines(), cpu_flags()):
        for loops, threads in [(1, cores)] if cores == 1 else [(1, cores), (cores, 1)]:
            try:
                found.append(measure(model, image, engine, precision, loops, threads, seconds))
            except RuntimeError as error:
                refused = error
                print(error, file=sys.stderr)
    if refused is not None and not found:
        raise RuntimeError(str(refused)[:250]) from refused
    return found


def best(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return max(found, key=lambda way: float(way["images_per_s"]))


def capacity(model: Path, image: Path, seconds: float, way: Mapping[str, Any]) -> float:
    """Gives the images per second of the best way, now."""
    chosen = {name: way[name] for name in ("engine", "precision", "loops", "threads")}
    found = measure(model.with_name("model.onnx"), image, seconds=seconds, **chosen)
    return float(found["images_per_s"])


def measure(
    model: Path,
    image: Path,
    engine: str,
    precision: str,
    loops: int,
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """Runs `loops` processes, begun together, each with a network of `threads` threads.

    Raises: RuntimeError if one of them ends without a result.
    """
    # Not forked: onnxruntime's threads do not survive it.
    spawn = multiprocessing.get_context("spawn")
    words = (str(model), image.read_bytes(), engine, precision, threads, seconds)
    with ProcessPoolExecutor(loops, spawn, _share, (spawn.Barrier(loops),)) as pool:
        running = [pool.submit(_loop, *words) for _ in range(loops)]
        try:
            times = [one.result() for one in running]
        except Exception as error:  # whatever the engine raises, or the end of a process
            raise RuntimeError(
                f"the bare limit does not run with {model} in {engine}, {precision}: {error}"
            ) from error
    return {
        "engine": engine,
        "precision": precision,
        "loops": loops,
        "threads": threads,
        # A loop ends with its last image, a little after `seconds`: each counts for itself.
        "images_per_s": round(sum(len(own) / sum(own) for own in times), 2),
        "latency": summary([second for own in times for second in own]),
    }


def _share(barrier: Barrier) -> None:
    global _begin
    _begin = barrier


def _loop(
    model: str, body: bytes, engine: str, precision: str, threads: int, seconds: float
) -> list[float]:
    """Returns the seconds of each image."""
    try:
        config = SegmenterConfig(
            provider="cpu",
            engine=engine,
            precision=precision,
            instances=1,
            intra_op_threads=threads,
            alone_threads=threads,
        )
        network = open_network(config, threads, Observer(), Path(model))
        colors = palette(network.contract.to_json())
        run = network.instances[0].run

        def segment() -> None:
            encode(run(decode(body)[None])[0], colors)

        for _ in range(_WARM):
            segment()
    except Exception:
        _begin.abort()  # the others wait for this one
        raise
    _begin.wait(_START_S)
    times = []
    until = time.perf_counter() + seconds
    while (started := time.perf_counter()) < until:
        segment()
        times.append(time.perf_counter() - started)
    return times


def main(words: Sequence[str] | None = None) -> int:
    parser = record.parser("bench.limit", __doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path, help="a JPEG")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each way")
    parser.add_argument("--rounds", type=int, default=1, help="of which each way's median counts")
    parser.add_argument("--out", type=Path, help="such as bench/results/limit.json")
    args = parser.parse_args(words)
    rounds = [ways(args.model, args.image, args.seconds) for _ in range(args.rounds)]
    found = [
        sorted(each, key=lambda way: float(way["images_per_s"]))[len(rounds) // 2]
        for each in zip(*rounds, strict=True)
    ]
    print(json.dumps(found))
    if args.out:
        record.write(args.out, {"rounds": args.rounds, "seconds": args.seconds, "ways": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
