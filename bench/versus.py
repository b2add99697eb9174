"""Two states of our server and the bare limit, taking turns in one run.

    git worktree add ../before HEAD~1
    python -m bench.versus --before ../before --precision int8

Both servers run all the time, and only one has work: a slot of each, then one of the limit, and
again. What the machine does to one it does to the others a few seconds later, so the ratios hold
where the images per second drift. Needs wrk, whose answers are counted once the server is full of
work (`wrk_says` in bench/peers/slots.py). The states may also be one checkout with two sets of
settings: `--now="--instances=1"`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import record
from bench.contenders import ROOT, CannotRun, free_port
from bench.limit import measure
from bench.load import percentiles
from bench.peers.slots import OWN_DEADLINE_MS, wrk_says
from bench.segment_load import jpeg
from service.core.engines.choice import INT8_FILE
from service.core.engines.cores import available_cores

SIZE = (360, 480)
LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class State:
    """A checkout and the flags its `fcn serve` gets."""

    name: str
    folder: Path
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that is ready: the URL of its /segment, and its process."""

    url: str
    pid: int


@contextmanager
def serving(state: State, model: Path, precision: str) -> Iterator[Serving]:
    """model: `<repository>/<name>/<version>/model.onnx`."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "serve", f"--http-port={port}", "--grpc-port=0"]
        + [f"--model-repository={model.parents[2]}", f"--default-model={model.parents[1].name}"]
        + [f"--precision={precision}", "--log-level=warning", *state.flags],
        cwd=state.folder,
        env={**os.environ, "PYTHONPATH": str(state.folder), "ORT_DISABLE_TELEMETRY": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None or "ready" not in process.stdout.readline():
            raise SystemExit(f"{state.name}: fcn serve does not start in {state.folder}")
        yield Serving(f"http://127.0.0.1:{port}/segment", process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wrk(url: str, picture: Path, connections: int, seconds: float) -> dict[str, float]:
    """Raises: SystemExit unless every request was answered."""
    try:
        found = wrk_says(url, picture, ["Content-Type: image/jpeg"], connections, seconds)
    except CannotRun as error:
        raise SystemExit(str(error)) from error
    if found["broken"] or found["refused"]:
        raise SystemExit(f"not every request was answered: {found}")
    return {name: found[name] for name in ("images_per_s", "p50_ms", "p99_ms")}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    cores = available_cores()
    model = args.model.with_name(INT8_FILE) if args.precision == "int8" else args.model
    states = [
        State("before", args.before.resolve(), tuple(shlex.split(args.was))),
        State("now", ROOT, tuple(shlex.split(args.now))),
    ]
    with ExitStack() as stack:
        picture = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "picture.jpg"
        picture.write_bytes(jpeg(*SIZE, seed=0))
        urls = {
            state.name: stack.enter_context(serving(state, args.model, args.precision)).url
            for state in states
        }
        rows = []
        for connections in args.connections:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in (*urls, LIMIT)}
            for url in urls.values():
                wrk(url, picture, connections, 1)
            for turn in range(args.rounds):
                order = list(urls.items())
                for name, url in order if turn % 2 == 0 else reversed(order):
                    found[name].append(wrk(url, picture, connections, args.seconds))
                if not args.without_limit:
                    way = (1, cores) if connections == 1 else (cores, 1)
                    row = measure(model, picture, *way, args.seconds)
                    found[LIMIT].append({"images_per_s": row["images_per_s"], **row["latency"]})
            rows.append({"connections": connections, **summary(found)})
            print(line(rows[-1]), flush=True)
        opened = []
        if args.open:
            ways = [measure(model, picture, *w, args.seconds) for w in ((1, cores), (cores, 1))]
            capacity = max(way["images_per_s"] for way in ways)
        for factor in args.open:
            several: dict[str, list[dict[str, Any]]] = {name: [] for name in urls}
            for turn in range(args.rounds):
                order = list(urls.items())
                for name, url in order if turn % 2 == 0 else reversed(order):
                    several[name].append(
                        open_loop(url, picture, factor * capacity, args.open_seconds, turn)
                    )
                    time.sleep(1)
            opened.append({"load": factor, "capacity": capacity, **pooled(several, args)})
            print(open_line(opened[-1]), flush=True)
    return {
        "precision": args.precision,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "flags": {state.name: list(state.flags) for state in states},
        "rows": rows,
        "open": opened,
    }


def open_loop(url: str, picture: Path, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """What `bench.load` prints of Poisson arrivals; both states get the same ones."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", f"{url}?deadline_ms={OWN_DEADLINE_MS}", str(picture)]
        + ["--rate", str(rate), "--seconds", str(seconds), "--warm", "1", "--seed", str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def pooled(several: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> dict[str, Any]:
    """Percentiles over the answers of all rounds, means of the rates."""
    row: dict[str, Any] = {}
    for name, found in several.items():
        latencies = [ms / 1e3 for each in found for ms in each["latencies_ms"]]
        row[name] = {
            "goodput_per_s": round(statistics.mean(each["goodput_per_s"] for each in found), 2),
            "answered": len(latencies),
            "refused": sum(each["refused"] for each in found),
            "late": sum(each["late"] + each["expired"] + each["hung_up"] for each in found),
            **percentiles(latencies),
            "refusal_p99_ms": max((each["refusal"]["p99_ms"] or 0.0) for each in found),
        }
    return row


def open_line(row: dict[str, Any]) -> str:
    words = [f"{row['load']:g}x of {row['capacity']:.1f}/s:"]
    for name in ("before", "now"):
        each = row[name]
        words.append(
            f"{name} goodput {each['goodput_per_s'] / row['capacity']:.2f} of the limit, "
            f"p50 {each['p50_ms']} p99 {each['p99_ms']}, refused {each['refused']} within "
            f"{each['refusal_p99_ms']}, late {each['late']};"
        )
    return "  ".join(words)


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds, and the medians of the ratios within a round."""
    row: dict[str, Any] = {}
    for name, slots in found.items():
        if slots:
            row[name] = {
                key: round(statistics.median(slot[key] for slot in slots), 2)
                for key in ("images_per_s", "p50_ms", "p99_ms")
            }

    def ratio(one: str, other: str) -> float | None:
        pairs = zip(found[one], found[other], strict=False)
        each = [a["images_per_s"] / b["images_per_s"] for a, b in pairs]
        return round(statistics.median(each), 3) if each else None

    row["now_of_before"] = ratio("now", "before")
    row["before_of_limit"], row["now_of_limit"] = ratio("before", LIMIT), ratio("now", LIMIT)
    return row


def line(row: dict[str, Any]) -> str:
    words = [f"{row['connections']:3d} connections:"]
    for name in ("before", "now", LIMIT):
        if name in row:
            words.append(f"{name} {row[name]['images_per_s']:.1f}/s p50 {row[name]['p50_ms']:.1f}")
    words.append(f"now/before {row['now_of_before']}")
    words.append(f"of the limit {row['before_of_limit']} -> {row['now_of_limit']}")
    return "  ".join(words)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.versus", description=__doc__)
    models = sorted((ROOT / "model_repository").glob("*/*/model.onnx"))
    parser.add_argument("--model", type=Path, default=models[0] if models else None)
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--before", type=Path, default=ROOT, help="the other checkout")
    parser.add_argument("--was", default="", metavar="FLAGS", help="of the other's fcn serve")
    parser.add_argument("--now", default="", metavar="FLAGS", help="of this one's")
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--open", type=float, nargs="*", default=[], metavar="FACTOR",
                        help="also Poisson arrivals at so many times the limit")  # fmt: skip
    parser.add_argument("--open-seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="counted of a slot")
    parser.add_argument("--without-limit", action="store_true")
    parser.add_argument("--out", type=Path, help="such as bench/results/versus.json")
    args = parser.parse_args(words)
    found = compare(args)
    if args.out:
        record.write(args.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
