"""CPU that a request costs the load generator itself, beside an older state of it.

    git worktree add ../before HEAD~1
    python -m bench.load_cost --before ../before [--rate 250] [--seconds 5] [--busy 0 2]

`bench.load` runs against a sink in a process of its own, which refuses every request as soon as it
has its last byte, so that nobody else's work is counted: user and system time of the generator's
process while its open loop runs. What the kernel does to bring a body over loopback to the other
side's buffer is in it. `--busy` cores multiply matrices meanwhile, as a server's would.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop

from bench import record
from bench.contenders import ROOT
from bench.segment_load import jpeg

REFUSAL = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n"
    b"Retry-After: 1\r\nContent-Length: 2\r\n\r\n{}"
)
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
# Both states are measured from outside, since the older one does not know its own cost.
_PROBE = """
import asyncio, inspect, json, sys, time
from bench import load
spent = []
if inspect.iscoroutinefunction(load.open_loop):  # as it was until November 2026
    loop = load.open_loop
    async def timed(client, due):
        began = time.process_time()
        answers = await loop(client, due)
        spent.append(time.process_time() - began)
        return answers
    load.open_loop = timed
else:
    run = load.Client.run
    def timed(client, start):
        began = time.process_time()
        answers = run(client, start)
        spent.append(time.process_time() - began)
        return answers
    load.Client.run = timed
load.main(sys.argv[1:])
print(json.dumps(spent))
"""


class Sink(asyncio.Protocol):
    """Answers 429 to each request when all of it has come."""

    def __init__(self) -> None:
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._left:  # a head comes in one piece from here
            length = _LENGTH.search(data)
            self._left = data.find(b"\r\n\r\n") + 4 + int(length[1] if length else 0)
        self._left -= len(data)
        if self._left <= 0:
            self._left = 0
            self._transport.write(REFUSAL)


def sink(port: Connection) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(serve())


def busy() -> None:
    """As much memory as an inference goes through."""
    one = np.ones((1024, 1024), np.float32)
    while True:
        np.dot(one, one)


def measure(folder: Path, url: str, picture: Path, rate: float, seconds: float) -> dict[str, Any]:
    """Raises: SystemExit unless every request was refused."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, url, str(picture)]
        + ["--rate", str(rate), "--seconds", str(seconds)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"bench.load of {folder} fails: {done.stderr[-300:]}")
    found, (cpu_s,) = (json.loads(line) for line in done.stdout.splitlines())
    if abs(found["refused"] / seconds - found["offered_per_s"]) > 0.01:
        raise SystemExit(f"{folder}: not every request was refused: {found}")
    return {
        "cpu_us": cpu_s / found["refused"] * 1e6,
        "lag_p99_ms": found["lag_p99_ms"],
        "reply_p50_ms": found["refusal"]["p50_ms"],
    }


def compare(args: argparse.Namespace, busy_cores: int) -> dict[str, Any]:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of each of the busy
    spawn = multiprocessing.get_context("spawn")
    mine, its = spawn.Pipe(duplex=False)
    processes = [spawn.Process(target=sink, args=(its,), daemon=True)]
    processes += [spawn.Process(target=busy, daemon=True) for _ in range(busy_cores)]
    states = {"now": ROOT} if args.before is None else {"before": args.before, "now": ROOT}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in states}
    with ExitStack() as stack:
        picture = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "picture.jpg"
        picture.write_bytes(jpeg(360, 480, seed=0))
        for process in processes:
            process.start()
            stack.callback(process.terminate)
        if not mine.poll(60):
            raise SystemExit("the sink does not start")
        url = f"http://127.0.0.1:{mine.recv()}/segment"
        for _ in range(args.rounds):
            for name, folder in states.items():
                found[name].append(measure(folder, url, picture, args.rate, args.seconds))
        size = picture.stat().st_size
    row: dict[str, Any] = {"busy_cores": busy_cores, "body_bytes": size}
    for name, runs in found.items():
        each = [run["cpu_us"] for run in runs]
        row[name] = {
            "cpu_us_per_request": round(statistics.median(each), 1),
            "each_round": [round(value, 1) for value in each],
            "lag_p99_ms": max(run["lag_p99_ms"] for run in runs),
            "reply_p50_ms": statistics.median(run["reply_p50_ms"] for run in runs),
        }
        print(f"{busy_cores} cores busy, {name}: {row[name]}", flush=True)
    return row


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.load_cost", description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--rate", type=float, default=250.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], metavar="CORES")
    parser.add_argument("--out", type=Path, help="such as bench/results/load-cost.json")
    args = parser.parse_args(words)
    rows = [compare(args, cores) for cores in args.busy]
    if args.out:
        record.write(args.out, {"rate": args.rate, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
