"""Compares two checkouts of the server in one run, in turns: before and after a change.

    git worktree add ../before HEAD~1
    python -m bench.versus --before ../before --precision int8 --rounds 3

Both servers run all the time and only one of them has work. In every round each gets closed loops
of 1, 8 and 32 connections, then Poisson arrivals at 0.7 and 3 times the bare limit, which is
measured at the round's beginning; who goes first changes from round to round. What the machine does
to one it does to the other a few seconds later, so ratios within a round hold where images per
second drift. Every ratio is given as the median over the rounds, with the least and the largest.
`cpu_ms` is what an image of a closed loop cost the server's processes in time of a core.

One checkout can be compared with itself under other settings: `--after-flags="--instances=1"`.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import generator, limit, record, servers
from bench.generator import Load
from bench.images import write_jpeg
from bench.servers import OWN_DEADLINE_MS, ROOT, CannotRun, Running
from bench.turns import order

SIZE = (360, 480)
STATES = ("before", "after")
_LIMIT_S = 2.0
"""For each of the limit's ways."""
_OVERLOAD = 1.0
"""From this load on, requests say their deadline, as callers of a full server should."""

Rounds = dict[str, list[Load]]
"""A load's result in every round, by state."""

CLOSED: dict[str, Callable[[Load], float | None]] = {
    "images_per_s": lambda load: load["answered_per_s"],
    "p50_ms": lambda load: load["latency"]["p50_ms"],
    "p99_ms": lambda load: load["latency"]["p99_ms"],
    "cpu_ms": lambda load: load["cpu_ms"],
}
OPEN: dict[str, Callable[[Load], float | None]] = {
    "goodput_per_s": lambda load: load["goodput_per_s"],
    "p50_ms": lambda load: load["latency"]["p50_ms"],
    "p99_ms": lambda load: load["latency"]["p99_ms"],
    "refusal_p50_ms": lambda load: load["refusal"]["p50_ms"],
    "refusal_p99_ms": lambda load: load["refusal"]["p99_ms"],
}
"""These are compared of a load; each stands there in what `bench.load` prints."""


def main(words: Sequence[str] | None = None) -> int:
    args = parse(words)
    model = args.model.with_name("model.int8.onnx") if args.precision == "int8" else args.model
    if not model.is_file():
        raise SystemExit(f"there is no file {model}")
    folders = {"before": args.before.resolve(), "after": args.after.resolve()}
    flags = {"before": shlex.split(args.before_flags), "after": shlex.split(args.after_flags)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        image = write_jpeg(folder / "image.jpg", SIZE)
        try:
            running = {
                state: stack.enter_context(
                    servers.running(
                        servers.fcn_serve(folders[state], model, args.precision, flags[state]),
                        image.read_bytes(),
                    )
                )
                for state in STATES
            }
        except CannotRun as error:
            raise SystemExit(f"fcn serve {error}") from error
        at_rest = {state: server.resident_mib() for state, server in running.items()}
        limits, loads = measure(args, running, model, image)
        memory = {
            state: {
                "at_rest_mib": at_rest[state],
                "resident_mib": server.resident_mib(),
                "most_resident_mib": server.most_resident_mib(),
            }
            for state, server in running.items()
        }
    found = {
        "precision": args.precision,
        "model": model.parents[1].name,
        "image": f"drawn, {SIZE[1]}x{SIZE[0]}, JPEG to palette PNG",
        "rounds": args.rounds,
        "closed_loop_s": args.seconds,
        "open_loop_s": args.open_seconds,
        "deadline_ms_in_overload": OWN_DEADLINE_MS,
        "goodput_deadline_s": generator.DEADLINE_S,
        "states": {
            state: {"revision": record.revision(folders[state]), "flags": flags[state]}
            for state in STATES
        },
        "limits_per_s": limits,
        "memory": {
            **memory,
            "after_of_before": round(
                memory["after"]["resident_mib"] / memory["before"]["resident_mib"], 3
            ),
        },
        "loads": {name: row(name, rounds, limits) for name, rounds in loads.items()},
    }
    print(table(found))
    if args.out:
        record.write(args.out, found)
    return 0


def measure(
    args: argparse.Namespace, running: dict[str, Running], model: Path, image: Path
) -> tuple[list[float], dict[str, Rounds]]:
    """Gives the limit of every round, and the loads by name."""
    limits: list[float] = []
    loads: dict[str, Rounds] = {}
    for server in running.values():
        generator.closed(server.url, image, max(args.connections, default=1), 1.0)
    seconds = min(_LIMIT_S, args.seconds)
    best = limit.best(limit.ways(model, image, seconds))
    print(f"the limit is that of {best['engine']}, {best['precision']}", flush=True)
    for turn in range(args.rounds):
        limits.append(limit.capacity(model, image, seconds, best))
        for connections in args.connections:
            name = f"{connections} connection{'s'[: connections > 1]}"
            for state in order(STATES, turn):
                began_s = running[state].cpu_s()
                found = generator.closed(running[state].url, image, connections, args.seconds)
                spent_s = running[state].cpu_s() - began_s
                counted = args.seconds / (args.seconds + generator.FILL_S)
                found["cpu_ms"] = 1000 * spent_s * counted / max(1, found["answered"])
                keep(loads, name, state, found)
        for factor in args.loads:
            for state in order(STATES, turn):
                server = running[state]
                query = f"?deadline_ms={OWN_DEADLINE_MS}" if factor >= _OVERLOAD else ""
                found = generator.poisson(
                    server.url + query, image, factor * limits[-1], args.open_seconds, seed=turn
                )
                found["recovery_s"] = servers.settle(server.command, image.read_bytes())
                keep(loads, f"{factor:g}x", state, found)
        print(f"round {turn + 1} of {args.rounds}: limit {limits[-1]:.1f}/s", flush=True)
    return limits, loads


def keep(loads: dict[str, Rounds], name: str, state: str, found: Load) -> None:
    loads.setdefault(name, {each: [] for each in STATES})[state].append(found)


def row(name: str, rounds: Rounds, limits: Sequence[float]) -> dict[str, Any]:
    """Puts a load's rounds together: each state pooled, and the ratios of after to before."""
    compared = OPEN if name.endswith("x") else CLOSED
    rate = "goodput_per_s" if name.endswith("x") else "answered_per_s"
    found: dict[str, Any] = {}
    for state in STATES:
        shares = [each[rate] / limit for each, limit in zip(rounds[state], limits, strict=True)]
        found[state] = {
            **generator.without_lists(generator.pooled(rounds[state])),
            "of_limit": spread(shares),
            "each_round": [
                {quantity: value(each) for quantity, value in compared.items()}
                for each in rounds[state]
            ],
        }
        if recoveries := [each["recovery_s"] for each in rounds[state] if "recovery_s" in each]:
            found[state]["recovery_s"] = max(recoveries)
    found["after_of_before"] = {
        quantity: spread(
            [
                now / was
                for was, now in zip(*(map(value, rounds[s]) for s in STATES), strict=True)
                if was and now is not None
            ]
        )
        for quantity, value in compared.items()
    }
    return found


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Gives median, least and largest; None of nothing."""
    if not values:
        return None
    found = {"median": statistics.median(values), "least": min(values), "largest": max(values)}
    return {name: round(value, 3) for name, value in found.items()}


def table(found: dict[str, Any]) -> str:
    """Writes two lines for each load: what both did, and the ratios with their spread."""
    lines = [f"{found['precision']}, {found['rounds']} rounds, after / before [least..largest]"]
    for name, each in found["loads"].items():
        lines.append(f"{name}:")
        for quantity, ratio in each["after_of_before"].items():
            if ratio is None:
                continue
            values = {
                state: statistics.median(
                    r[quantity] for r in each[state]["each_round"] if r[quantity] is not None
                )
                for state in STATES
            }
            lines.append(
                f"  {quantity:15} {values['before']:9.2f} -> {values['after']:9.2f}   "
                f"{ratio['median']:.3f} [{ratio['least']:.3f}..{ratio['largest']:.3f}]"
            )
        for state in STATES:
            load = each[state]
            counts = ("refused", "late", "expired", "hung_up", "other_errors")
            lines.append(
                f"  {state:6} {load['of_limit']['median']:.3f} of the limit; {load['answered']} "
                f"answered, {', '.join(f'{load[count]} {count}' for count in counts)}; "
                f"generator {100 * load['generator_share']:.1f} % of the cores"
            )
    memory = found["memory"]
    for state in STATES:
        lines.append(f"memory {state}: {memory[state]}")
    lines.append(f"memory after / before: {memory['after_of_before']}")
    return "\n".join(lines)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = record.parser("bench.versus", __doc__)
    parser.add_argument("--before", type=Path, default=ROOT, help="a checkout (this one)")
    parser.add_argument("--after", type=Path, default=ROOT, help="the other (this one)")
    parser.add_argument("--before-flags", default="", metavar="FLAGS", help="of its fcn serve")
    parser.add_argument("--after-flags", default="", metavar="FLAGS", help="of its fcn serve")
    parser.add_argument("--model", type=Path, help="for both: REPOSITORY/NAME/VERSION/model.onnx "
                        "(the first of --before's model_repository)")  # fmt: skip
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=4.0, help="counted of a closed loop")
    parser.add_argument("--loads", type=float, nargs="*", default=[0.7, 3.0],
                        help="of the open loops, in limits")  # fmt: skip
    parser.add_argument("--open-seconds", type=float, default=8.0, help="of an open loop")
    parser.add_argument("--out", type=Path, help="such as bench/results/versus-int8.json")
    args = parser.parse_args(words)
    if args.model is None:
        found = sorted((args.before / "model_repository").glob("*/*/model.onnx"))
        if not found:
            parser.error(f"--before: there is no model_repository/*/*/model.onnx in {args.before}")
        args.model = found[0]
    args.model = args.model.resolve()
    if args.rounds < 1 or min(args.seconds, args.open_seconds) <= 0:
        parser.error("--rounds, --seconds and --open-seconds must be above 0")
    return args


if __name__ == "__main__":
    sys.exit(main())
