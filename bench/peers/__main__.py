"""Compares our server, the bare limit and the peers in one run, in turns: `python -m bench.peers`.

The run is cut into slots of less than 90 s: the choice of each peer's variant, then in every round
the limit and, for each server, a steady slot (closed loops, then Poisson at 0.7 of the limit) and
an overload slot (Poisson at 2 and 3 times the limit). A shared machine is faster at one minute than
at another, so the limit is measured before and after each of these slots, and counts for it alone.
What is finished is kept: begun again after an interruption, the run goes on. Writes
results/peers-PRECISION.json and, with --page, the table and the plot of docs/results/peers.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import generator, record
from bench.images import write_jpeg
from bench.peers import contenders, report
from bench.peers.contenders import CACHE, CONTENDERS, LIMIT, OURS, PEER_LIST
from bench.servers import ROOT, CannotRun
from bench.turns import order

PARTS = ("steady", "overload")
SIZE = (360, 480)
_SLOT_S = 300.0


def main(words: Sequence[str] | None = None) -> int:
    args = parse(words)
    names = chosen(args.peers)
    args.work.mkdir(parents=True, exist_ok=True)
    done = Done(args.work)
    settings = describe(args, names)
    start_over_unless(args.work / "settings.json", settings, fresh=args.fresh)
    image = write_jpeg(args.work / "image.jpg", SIZE)
    errors = {}
    for name in names:
        try:
            contenders.install(CONTENDERS[name])
        except CannotRun as error:
            errors[name] = str(error)
    plan = list(slots_of(names, args.rounds, args.only))
    for number, slot in enumerate(plan, 1):
        name = slot["name"]
        if name in errors or done(slot) is not None:
            continue
        print(f"[{number}/{len(plan)}] {title(name)}: {slot['part']}", flush=True)
        found = run(slot, args, image, done)
        if "error" in found:
            errors[name] = found["error"]
            print(f"{title(name)} {found['error']}", flush=True)
    measured = report.collect(settings, plan, done, errors, names)
    record.write(args.out, measured)
    print(report.table(measured))
    if args.page is not None:
        report.write_page(args.page, json.loads(args.out.read_text()))
    for file in args.work.iterdir():
        file.unlink()  # a finished run is not gone on with
    return 0 if OURS.name not in errors else 1


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = record.parser("bench.peers", __doc__)
    models = sorted((ROOT / "model_repository").glob("*/*/model.onnx"))
    parser.add_argument("--model", type=Path, default=models[0] if models else None,
                        help="<repository>/<name>/<version>/model.onnx")  # fmt: skip
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32",
                        help="int8: the 8-bit file beside the model, for everybody")  # fmt: skip
    parser.add_argument("--peers", default=",".join(c.name for c in PEER_LIST),
                        help="comma-separated; empty for none")  # fmt: skip
    parser.add_argument("--only", choices=PARTS, help="one part of each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0,
                        help="counted of each closed loop")  # fmt: skip
    parser.add_argument("--open-seconds", type=float, default=8.0, help="of each Poisson load")
    parser.add_argument("--warm", type=float, default=1.0, help="seconds before, not counted")
    parser.add_argument("--under", default="", metavar="COMMAND",
                        help="put before each slot's command: a lock, taskset")  # fmt: skip
    parser.add_argument("--work", type=Path, default=CACHE / "run", help="finished slots")
    parser.add_argument("--fresh", action="store_true", help="forget an interrupted run")
    parser.add_argument("--out", type=Path, help="by default results/peers-PRECISION.json")
    parser.add_argument("--page", type=Path, help="page to write the table into, with its plot")
    args = parser.parse_args(words)
    if args.model is None or not args.model.exists():
        parser.error(f"--model: there is no file {args.model}")
    if args.precision == "int8":
        args.model = args.model.with_name("model.int8.onnx")
        if not args.model.exists():
            parser.error(f"--precision int8: there is no file {args.model}: see fcn quantize")
    args.out = args.out or record.RESULTS / f"peers-{args.precision}.json"
    if min(args.rounds, args.seconds, args.open_seconds) <= 0:
        parser.error("--rounds, --seconds and --open-seconds must be above 0")
    args.model = args.model.resolve()
    return args


def chosen(peers: str) -> list[str]:
    """Puts ours first. Raises: SystemExit naming a peer that there is not."""
    names = [name for name in peers.split(",") if name]
    known = [peer.name for peer in PEER_LIST]
    if unknown := sorted(set(names) - set(known)):
        raise SystemExit(f"no peer {', '.join(unknown)}: choose from {', '.join(known)}")
    return [OURS.name, *names]


def describe(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {
        "model": args.model.parents[1].name,
        "file": args.model.name,
        "precision": args.precision,
        "model_sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "image": f"drawn, {SIZE[1]}x{SIZE[0]}, JPEG to palette PNG",
        "servers": list(names),
        "rounds": args.rounds,
        "closed_loop_s": args.seconds,
        "open_loop_s": args.open_seconds,
        "goodput_deadline_s": generator.DEADLINE_S,
        "load_generator": "bench.load, on the same cores as the servers",
    }


def start_over_unless(file: Path, settings: dict[str, Any], *, fresh: bool) -> None:
    """Keeps the slots of an interrupted run only if it was to measure the same."""
    same = file.exists() and json.loads(file.read_text()) == settings
    if fresh or not same:
        for old in file.parent.iterdir():
            old.unlink()
    file.write_text(json.dumps(settings))


def slots_of(names: Sequence[str], rounds: int, only: str | None) -> Iterator[dict[str, Any]]:
    """Gives the slots in the order in which they run."""
    yield {"name": LIMIT, "part": "limit", "round": 0}
    for name in names:
        if name != OURS.name:
            yield {"name": name, "part": "variants", "round": 0}
    for turn in range(rounds):
        if turn:
            yield {"name": LIMIT, "part": "limit", "round": turn}
        for part in PARTS if only is None else (only,):
            for name in order(names, turn):
                yield {"name": name, "part": part, "round": turn}


class Done:
    """Keeps finished slots, a file each in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, slot: dict[str, Any]) -> dict[str, Any] | None:
        file = self.file(slot)
        return json.loads(file.read_text()) if file.exists() else None

    def file(self, slot: dict[str, Any]) -> Path:
        return self._folder / f"{slot['round']}-{slot['part']}-{slot['name']}.json"


def title(name: str) -> str:
    return "the bare limit" if name == LIMIT else CONTENDERS[name].title


def run(slot: dict[str, Any], args: argparse.Namespace, image: Path, done: Done) -> dict[str, Any]:
    """Measures a slot in a process of its own, and again if it was stopped from outside."""
    task = slot | {
        "model": str(args.model),
        "image": str(image),
        "seconds": args.seconds,
        "open_seconds": args.open_seconds,
        "warm": args.warm,
        "out": str(done.file(slot)),
    }
    choice = done({"name": slot["name"], "part": "variants", "round": 0})
    if choice is not None:
        task["variant"] = choice["chosen"]
    command = [*shlex.split(args.under), sys.executable, "-m", "bench.peers.slots"]
    said = ""
    for _ in range(2):
        process = subprocess.Popen(
            [*command, json.dumps(task)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            # A lock may keep it waiting for as long as it likes.
            output, _ = process.communicate(timeout=None if args.under else _SLOT_S)
            said = f"exit code {process.returncode}: {output.strip()[-300:]}"
        except subprocess.TimeoutExpired:
            process.terminate()  # it stops its server
            process.communicate()
            said = f"took longer than {_SLOT_S:.0f} s"
        if (found := done(slot)) is not None:
            return found
    found = {"error": f"has no result: {said}"}
    done.file(slot).write_text(json.dumps(found))
    return found


if __name__ == "__main__":
    sys.exit(main())
