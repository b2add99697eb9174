"""`POST /segment` and gRPC Segment under a closed loop of 1 and 8 clients.

    python -m bench.segment_load [--repository model_repository] [--requests 300]

Starts `fcn serve` as its users do, posts drawn JPEG street scenes over loopback, and reports what
the client waits and what the server says of itself (Server-Timing: decode, queue, infer, render).
Clients and server share the machine's cores, as they would not in production.
"""

from __future__ import annotations

import argparse
import http.client
import io
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
from PIL import Image

from bench import record
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc
from training.datasets.drawn import draw

SIZES = ((360, 480), (375, 500))
CONCURRENCY = (1, 8)
STAGES = ("decode", "queue", "infer", "render")
Segment = Callable[[bytes], dict[str, float]]
"""A JPEG's bytes -> seconds the server spent per stage."""

_READY = re.compile(r"ready: REST (http://\S+), gRPC (\S+), serving")


def main() -> None:
    parser = argparse.ArgumentParser(description="latency of a server under a closed loop")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--requests", type=int, default=300, help="per size and concurrency")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "segment-load.json")
    args = parser.parse_args()
    server = Server(args.repository)
    try:
        rows = [
            measure(transport, server.url, server.target, size, clients, args.requests)
            for size in SIZES
            for transport in ("rest", "grpc")
            for clients in CONCURRENCY
        ]
    finally:
        server.stop()
    print_table(rows)
    record.write(args.out, {"requests_per_row": args.requests, "rows": rows})


class Server:
    """`fcn serve` on ports the system picks."""

    def __init__(self, repository: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "cli.main", "serve", "--http-port=0", "--grpc-port=0"]
        command += [f"--model-repository={repository}", *flags]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = self.process.stdout.readline() if self.process.stdout else ""
        found = _READY.search(line)
        if found is None:
            raise SystemExit(f"the server did not start: {line!r}; run `fcn serve` to see why")
        self.url, self.target = found.groups()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        if self.process.stdout:
            self.process.stdout.close()


def measure(
    transport: str, url: str, target: str, size: tuple[int, int], clients: int, requests: int
) -> dict[str, Any]:
    pictures = [jpeg(*size, seed) for seed in range(8)]
    ask: Rest | Rpc = Rest(url) if transport == "rest" else Rpc(target)
    per_client = max(1, requests // clients)

    def loop(client: int) -> list[tuple[float, dict[str, float]]]:
        segment = ask.connect()
        for index in range(3):
            segment(pictures[index])
        found = []
        for index in range(per_client):
            body = pictures[(client + index) % len(pictures)]
            begun = time.perf_counter()
            stages = segment(body)
            found.append((time.perf_counter() - begun, stages))
        return found

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = [answer for found in pool.map(loop, range(clients)) for answer in found]
    elapsed = time.perf_counter() - started
    return {
        "transport": transport,
        "height": size[0],
        "width": size[1],
        "clients": clients,
        "images_per_s": round((len(answers) + 3 * clients) / elapsed, 2),
        "client": record.summary([seconds for seconds, _ in answers]),
        **{s: record.summary([stages[s] for _, stages in answers]) for s in STAGES},
    }


class Rest:
    def __init__(self, url: str) -> None:
        self.address = urlsplit(url)

    def connect(self) -> Segment:
        """A connection of its own; the function raises RuntimeError unless the answer is 200."""
        session = http.client.HTTPConnection(
            str(self.address.hostname), self.address.port, timeout=60
        )

        def segment(body: bytes) -> dict[str, float]:
            session.request("POST", "/segment", body, {"Content-Type": "image/jpeg"})
            reply = session.getresponse()
            content = reply.read()
            if reply.status != 200:
                raise RuntimeError(f"{reply.status}: {content[:300]!r}")
            found = re.findall(r"(\w+);dur=([\d.]+)", reply.getheader("Server-Timing", ""))
            return {name: float(value) / 1e3 for name, value in found}

        return segment


class Rpc:
    def __init__(self, target: str) -> None:
        self.target = target

    def connect(self) -> Segment:
        stub = pb_grpc.SegmentationStub(grpc.insecure_channel(self.target))

        def segment(body: bytes) -> dict[str, float]:
            timings = stub.Segment(pb.SegmentRequest(image=body), timeout=60).timings
            return {stage: getattr(timings, f"{stage}_s") for stage in STAGES}

        return segment


def jpeg(height: int, width: int, seed: int) -> bytes:
    image = draw(height, width, np.random.default_rng(seed)).image
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def print_table(rows: list[dict[str, Any]]) -> None:
    print(
        "| transport | size | clients | p50 | p99 | images/s | decode | queue | infer | render |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        stages = " | ".join(f"{row[stage]['p50_ms']:.1f}" for stage in STAGES)
        print(
            f"| {row['transport']} | {row['height']}x{row['width']} | {row['clients']} "
            f"| {row['client']['p50_ms']:.1f} | {row['client']['p99_ms']:.1f} "
            f"| {row['images_per_s']:.1f} | {stages} |"
        )


if __name__ == "__main__":
    main()
