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
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import generator, limit, record
from bench.images import write_jpeg
from bench.peers import contenders, report
from bench.peers.contenders import CACHE, CONTENDERS, LIMIT, OURS, PEER_LIST
from bench.peers.report import Result, Slot
from bench.servers import ROOT, CannotRun
from bench.turns import order

PARTS = ("steady", "overload")
SIZE = (360, 480)
_SLOT_S = 300.0


def main(words: Sequence[str] | None = None) -> int:
    args = parse(words)
    names = chosen(args.peers)
    settings = describe(args, names)
    finished = {} if args.fresh else finished_slots(args.work, settings)
    errors = {}
    for name in names:
        try:
            contenders.install(CONTENDERS[name])
        except CannotRun as error:
            errors[name] = str(error)
    plan = list(slots_of(names, args.rounds, args.only))
    with tempfile.TemporaryDirectory() as folder:
        image = write_jpeg(Path(folder) / "image.jpg", SIZE)
        for number, slot in enumerate(plan, 1):
            if slot.name not in errors and slot not in finished:
                print(f"[{number}/{len(plan)}] {slot}", flush=True)
                finished[slot] = run(slot, args, image, finished)
                keep(args.work, settings, finished)
            if "error" in finished.get(slot, {}):
                errors[slot.name] = finished[slot]["error"]
                print(f"{slot}: {errors[slot.name]}", flush=True)
    measured = report.collect(settings, finished, errors, names)
    record.write(args.out, measured)
    print(report.table(measured))
    if args.page is not None:
        report.write_page(args.page, json.loads(args.out.read_text()))
    args.work.unlink(missing_ok=True)  # a finished run is not gone on with
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
    parser.add_argument("--work", type=Path, default=CACHE / "run.json", help="finished slots")
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


def slots_of(names: Sequence[str], rounds: int, only: str | None) -> Iterator[Slot]:
    """Gives the slots in the order in which they run."""
    yield Slot(0, "limit", LIMIT)
    for name in names:
        if name != OURS.name:
            yield Slot(0, "variants", name)
    for turn in range(rounds):
        if turn:
            yield Slot(turn, "limit", LIMIT)
        for part in PARTS if only is None else (only,):
            for name in order(names, turn):
                yield Slot(turn, part, name)


def finished_slots(file: Path, settings: dict[str, Any]) -> dict[Slot, Result]:
    """Reads what an interrupted run left, if it was to measure the same."""
    if not file.exists():
        return {}
    left = json.loads(file.read_text())
    return {Slot(*slot): found for slot, found in left["slots"] if left["settings"] == settings}


def keep(file: Path, settings: dict[str, Any], finished: Mapping[Slot, Result]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"settings": settings, "slots": list(finished.items())}))


def run(
    slot: Slot, args: argparse.Namespace, image: Path, finished: Mapping[Slot, Result]
) -> Result:
    """Measures a slot in a process of its own, and again if it was stopped from outside."""
    task = {
        **slot._asdict(),
        "model": str(args.model),
        "image": str(image),
        "seconds": args.seconds,
        "open_seconds": args.open_seconds,
        "warm": args.warm,
    }
    if slot.name != LIMIT:
        task["limit"] = limit.best(finished[Slot(0, "limit", LIMIT)]["ways"])
    if (choice := finished.get(Slot(0, "variants", slot.name))) is not None:
        task["variant"] = choice["chosen"]
    said = ""
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.peers.slots", json.dumps(task)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            output, log = process.communicate(timeout=_SLOT_S)
        except subprocess.TimeoutExpired:
            process.terminate()  # it stops its server
            process.communicate()
            said = f"took longer than {_SLOT_S:.0f} s"
            continue
        if process.returncode == 0:
            return dict(json.loads(output))
        said = f"exit code {process.returncode}: {log.strip()[-300:]}"
    return {"error": f"has no result: {said}"}


if __name__ == "__main__":
    sys.exit(main())
