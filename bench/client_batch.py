"""Three ways of the Python client through many pictures: which costs how much?

    python -m bench.client_batch [--repository model_repository] [--seconds 5] [--rounds 3]

`segment_many` over REST and over gRPC, and `segment_stream`, all with as many pictures in flight,
taking turns. Two loads: drawn JPEG street scenes of 360x480, where the network is the work, and of
48x64, where everything around it is. Client and server share the machine, so the processor time
that the client itself used is told beside the rate.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import record
from bench.segment_load import Server, jpeg
from fcn_client import FcnClient, Outcome

SIZES = ((48, 64), (360, 480))
IN_FLIGHT = 8
Way = Callable[[Iterator[bytes]], Iterator[Outcome[bytes, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description="the client's ways through many pictures")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--seconds", type=float, default=5.0, help="per size, way and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "client-batch.json")
    args = parser.parse_args()
    server = Server(args.repository)
    try:
        rows = list(measure(server, args.seconds, args.rounds))
    finally:
        server.stop()
    print(f"{'size':>8} {'way':<14} {'images/s':>9} {'client ms/image':>16}")
    for row in rows:
        size = f"{row['height']}x{row['width']}"
        print(f"{size:>8} {row['way']:<14} {row['images_per_s']:9} {row['client_cpu_ms']:16}")
    record.write(args.out, {"in_flight": IN_FLIGHT, "rounds": args.rounds, "rows": rows})


def measure(server: Server, seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    """The middle of the rounds of each."""
    with FcnClient(server.url) as rest, FcnClient(f"grpc://{server.target}") as rpc:
        ways: dict[str, Way] = {
            "REST many": lambda images: rest.segment_many(
                images, in_flight=IN_FLIGHT, ordered=False
            ),
            "gRPC many": lambda images: rpc.segment_many(
                images, in_flight=IN_FLIGHT, ordered=False
            ),
            "gRPC stream": lambda images: rpc.segment_stream(images, window=IN_FLIGHT),
        }
        for height, width in SIZES:
            pictures = [jpeg(height, width, seed) for seed in range(8)]
            for way in ways.values():
                run(way, pictures, 0.5)
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    found[name].append(run(way, pictures, seconds))
            for name, turns in found.items():
                rate, cpu_s = np.median(turns, axis=0)
                yield {
                    "way": name,
                    "height": height,
                    "width": width,
                    "images_per_s": round(float(rate), 1),
                    "client_cpu_ms": round(1000 * float(cpu_s), 2),
                }


def run(way: Way, pictures: list[bytes], seconds: float) -> tuple[float, float]:
    """Images a second, and the client's processor time for one, in seconds."""
    began, cpu_began = time.perf_counter(), time.process_time()

    def source() -> Iterator[bytes]:
        for number in itertools.count():
            if time.perf_counter() - began > seconds:
                return
            yield pictures[number % len(pictures)]

    done = 0
    for outcome in way(source()):
        outcome.unwrap()
        done += 1
    return done / (time.perf_counter() - began), (time.process_time() - cpu_began) / done


if __name__ == "__main__":
    main()
