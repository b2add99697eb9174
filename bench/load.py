"""Load of one picture on one URL: a closed loop, or Poisson arrivals that wait for nobody.

    python -m bench.load http://127.0.0.1:8000/segment photo.jpg --rate 60 --seconds 10
    python -m bench.load http://127.0.0.1:8000/segment photo.jpg --connections 8 --seconds 5

Open loop: a request has the time at which it is due, drawn beforehand, and its latency counts from
then, sent late or not. So a server that stalls is charged for everybody who came meanwhile, which a
closed loop forgets ("coordinated omission"). Connections are kept and taken in turn; a new one is
opened when all are busy. A client hangs up after its patience. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from bench.http_client import NO_ANSWER, Answer, Client
from service.core.engines.cores import available_cores

OK = 200
REFUSED = frozenset({429, 503})
EXPIRED = frozenset({408, 504})
"""Given up by the server after it had taken the request in."""
_TICK_S = 5e-4
"""A request may be sent so early: event loops count in milliseconds, to the nearest."""


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds at which requests are due: exponential gaps of 1/rate on average."""
    chance = random.Random(seed)
    due, found = 0.0, []
    while (due := due + chance.expovariate(rate)) < seconds:
        found.append(due)
    return found


def request(url: str, body: bytes, content_type: str, headers: Sequence[str] = ()) -> bytes:
    """The bytes of a POST; `headers` are whole lines."""
    where = urlsplit(url)
    path = (where.path or "/") + (f"?{where.query}" if where.query else "")
    lines = (f"POST {path} HTTP/1.1", f"Host: {where.netloc}", f"Content-Type: {content_type}",
             f"Content-Length: {len(body)}", *headers)  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Asker(Protocol):
    """Who asks: `Client`, or another for another protocol. Calls back from an event loop."""

    def begin(self) -> None: ...

    def now(self) -> float: ...

    def call_later(self, wait_s: float, callback: Callable[[], None]) -> object: ...

    def ask(self, due_s: float, done: Callable[[Answer], None]) -> None: ...


Finished = Callable[[list[Answer]], None]
"""Called once, with an answer to every request, in the order in which they were due."""


def open_loop(client: Asker, due: Sequence[float], finished: Finished) -> None:
    """A request for every time in `due` (ascending, seconds)."""
    answers: list[Answer] = []
    sent = 0

    def answered(answer: Answer) -> None:
        answers.append(answer)
        if len(answers) == len(due):
            finished(sorted(answers))

    def send() -> None:
        nonlocal sent
        while sent < len(due):
            if (wait_s := due[sent] - client.now()) > _TICK_S:
                client.call_later(wait_s, send)
                return
            client.ask(due[sent], answered)
            sent += 1

    client.begin()
    client.call_later(0, send if due else lambda: finished([]))


def closed_loop(client: Asker, connections: int, seconds: float, finished: Finished) -> None:
    """As many clients as `connections`, each asking again as soon as it has its answer."""
    answers: list[Answer] = []
    left = connections

    def send() -> None:
        nonlocal left
        if (due_s := client.now()) < seconds:
            client.ask(due_s, answered)
        elif (left := left - 1) == 0:
            finished(sorted(answers))

    def answered(answer: Answer) -> None:
        answers.append(answer)
        if answer.status == OK:
            send()
        else:
            client.call_later(0.01, send)  # a refusal costs nothing: no storm of them

    client.begin()
    for _ in range(connections):
        client.call_later(0, send)


class Meter:
    """CPU seconds of this process, user and system, from one second of the load to another."""

    def __init__(self, client: Asker, since_s: float, until_s: float) -> None:
        self._seconds: list[float] = []
        for moment in (since_s, until_s):
            client.call_later(moment, lambda: self._seconds.append(time.process_time()))

    def cpu_s(self) -> float:
        """Until now, if the load was over before."""
        since, until, *_ = (*self._seconds, time.process_time(), time.process_time())
        return until - since


def summary(
    answers: Sequence[Answer],
    *,
    since_s: float,
    until_s: float,
    deadline_s: float,
    closed: bool = False,
) -> dict[str, Any]:
    """What became of the requests due in [since_s, until_s): counts, rates per second, ms.

    closed: those that were over in that time. In a closed loop as many are under way at its start
    as at its end, while by when they were due, those at the end would be counted on top.
    `goodput_per_s`: answered 200 within the deadline. `lag_p99_ms`: how late the generator sent;
    near the latencies, it is the generator that was measured.
    """
    span = until_s - since_s
    counted = within(answers, since_s, until_s, closed=closed)
    good = [a.latency_s for a in counted if a.status == OK]
    refused = [a for a in counted if a.status in REFUSED]
    return {
        "offered_per_s": round(len(counted) / span, 2),
        "answered_per_s": round(len(good) / span, 2),
        "goodput_per_s": round(sum(s <= deadline_s for s in good) / span, 2),
        "answered": len(good),
        "late": sum(s > deadline_s for s in good),
        "refused": len(refused),
        "expired": sum(a.status in EXPIRED for a in counted),
        "hung_up": sum(a.status == NO_ANSWER for a in counted),
        "other_errors": sum(a.status not in REFUSED | EXPIRED | {OK, NO_ANSWER} for a in counted),
        "latency": percentiles(good),
        "refusal": percentiles([a.latency_s for a in refused]),
        "refusals_with_retry_after": sum(a.retry_after for a in refused),
        "lag_p99_ms": percentiles([a.sent_s - a.due_s for a in counted])["p99_ms"],
    }


def within(
    answers: Sequence[Answer], since_s: float, until_s: float, *, closed: bool
) -> list[Answer]:
    """Those due, or over if the loop is closed, from one second to another."""
    return [a for a in answers if since_s <= (a.done_s if closed else a.due_s) < until_s]


def stages_of(timing: bytes) -> dict[str, float]:
    """Milliseconds by stage, of a Server-Timing header."""
    found = re.findall(r"(\w+);dur=([\d.]+)", timing.decode("latin-1"))
    return {name: float(value) for name, value in found}


def timing_of(stages: Mapping[str, float]) -> bytes:
    """The Server-Timing header of milliseconds by stage."""
    return ", ".join(f"{name};dur={value:.3f}" for name, value in stages.items()).encode()


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """p50, p95, p99 in milliseconds; None of nothing."""
    if not seconds:
        return {"p50_ms": None, "p95_ms": None, "p99_ms": None}
    values = sorted(seconds)
    found: dict[str, float | None] = {}
    for percent in (50, 95, 99):
        # As numpy does it, which takes 0.1 s of a core to import and starts threads that spin.
        place = (len(values) - 1) * percent / 100
        below = int(place)
        above = min(below + 1, len(values) - 1)
        value = values[below] + (values[above] - values[below]) * (place - below)
        found[f"p{percent}_ms"] = round(float(value) * 1e3, 2)
    return found


def offer(args: argparse.Namespace, client: Asker, finished: Finished) -> Meter:
    """Begins the load that was asked for."""
    seconds = args.warm + args.seconds
    gc.disable()
    meter = Meter(client, args.warm, seconds)
    if args.rate is not None:
        open_loop(client, poisson(args.rate, seconds, args.seed), finished)
    else:
        closed_loop(client, args.connections, seconds, finished)
    return meter


def report(args: argparse.Namespace, answers: Sequence[Answer], cpu_s: float) -> dict[str, Any]:
    """What is printed. `generator_cpu_s`: of this process, of all cores in `generator_share`."""
    since_s, until_s, closed = args.warm, args.warm + args.seconds, args.rate is None
    found = summary(
        answers, since_s=since_s, until_s=until_s, deadline_s=args.deadline, closed=closed
    )
    found["generator_cpu_s"] = round(cpu_s, 4)
    found["generator_share"] = round(cpu_s / args.seconds / available_cores(), 4)
    counted = [a for a in within(answers, since_s, until_s, closed=closed) if a.status == OK]
    if args.stages:
        each = [stages_of(answer.timing) for answer in counted]
        names = dict.fromkeys(name for stages in each for name in stages)
        found["due_s"] = [round(answer.due_s, 4) for answer in counted]
        found["stages_ms"] = {
            name: [round(stages[name], 3) for stages in each if name in stages] for name in names
        }
    return found | {"latencies_ms": [round(a.latency_s * 1e3, 1) for a in counted]}


def arguments(description: str | None, program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("url")
    parser.add_argument("body", type=Path)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--rate", type=float, help="open loop: requests per second on average")
    kind.add_argument("--connections", type=int, help="closed loop: clients")
    parser.add_argument("--seconds", type=float, default=10.0, help="counted")
    parser.add_argument("--warm", type=float, default=0.0, help="seconds before, not counted")
    parser.add_argument("--deadline", type=float, default=0.5, help="seconds; later is no goodput")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds, then hang up")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--stages", action="store_true", help="every answer's time by stage, too")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    parser = arguments(__doc__, "python -m bench.load")
    parser.add_argument("--content-type", default="image/jpeg")
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'")
    args = parser.parse_args(words)

    message = request(args.url, args.body.read_bytes(), args.content_type, args.header)
    client = Client(args.url, message, args.patience)
    try:
        meters: list[Meter] = []
        answers = client.run(lambda finished: meters.append(offer(args, client, finished)))
        found = report(args, answers, meters[0].cpu_s())
    finally:
        client.close()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
