"""Loads one URL with one image: a closed loop, or Poisson arrivals that wait for nobody.

    python -m bench.load http://127.0.0.1:8000/segment photo.jpg --rate 60 --seconds 10
    python -m bench.load http://127.0.0.1:8000/segment photo.jpg --connections 8 --seconds 5
    python -m bench.load grpc://127.0.0.1:8001 photo.jpg --connections 8 --seconds 5

Open loop: a request has the time at which it is due, drawn beforehand, and its latency counts from
then, sent late or not. So a server that stalls is charged for everybody who came meanwhile, which a
closed loop forgets ("coordinated omission"). Connections are kept and taken in turn; a new one is
opened when all are busy. A client hangs up after its patience. Prints one JSON object.

`fcn bench` is the load test for users, with the client's own code for keys, TLS and errors. This
one costs a fraction of that, for it runs on the cores that it measures, and asks other servers.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from bench import record
from bench.http_client import NO_ANSWER, Answer, Client
from cli._simulation import poisson
from service.core.engines.cores import available_cores

OK = 200
REFUSED = frozenset({429, 503})
EXPIRED = frozenset({408, 504})
"""Statuses of requests that the server gave up after it had taken them in."""
_TICK_S = 5e-4
"""A request may be sent so early: event loops count in milliseconds, to the nearest."""
_REFUSED_WAIT_S = 0.01
"""A client of a closed loop waits so long after a refusal, or refusals would be a storm."""

Finished = Callable[[list[Answer]], None]
"""Called once, with an answer to every request, in the order in which they were due."""


class LoadClient(Protocol):
    """Sends requests over one protocol, and calls back from its event loop."""

    def run(self, start: Callable[[Finished], None]) -> list[Answer]: ...

    def begin(self) -> None: ...

    def now(self) -> float: ...

    def call_later(self, wait_s: float, callback: Callable[[], None]) -> object: ...

    def ask(self, due_s: float, done: Callable[[Answer], None]) -> None: ...

    def close(self) -> None: ...


def request(url: str, body: bytes, content_type: str, headers: Sequence[str] = ()) -> bytes:
    """Writes the bytes of a POST; `headers` are whole lines."""
    where = urlsplit(url)
    path = (where.path or "/") + (f"?{where.query}" if where.query else "")
    lines = (f"POST {path} HTTP/1.1", f"Host: {where.netloc}", f"Content-Type: {content_type}",
             f"Content-Length: {len(body)}", *headers)  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def open_loop(client: LoadClient, due: Sequence[float], finished: Finished) -> None:
    """Sends a request at every time in `due` (ascending, seconds)."""
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


def closed_loop(client: LoadClient, connections: int, seconds: float, finished: Finished) -> None:
    """Lets so many clients ask, each again as soon as it has its answer."""
    answers: list[Answer] = []
    left = connections

    def send() -> None:
        nonlocal left
        if (due_s := client.now()) < seconds:
            client.ask(due_s, answered)
            return
        left -= 1
        if left == 0:
            finished(sorted(answers))

    def answered(answer: Answer) -> None:
        answers.append(answer)
        if answer.status == OK:
            send()
        else:
            client.call_later(_REFUSED_WAIT_S, send)

    client.begin()
    for _ in range(connections):
        client.call_later(0, send)


def summary(
    answers: Sequence[Answer],
    *,
    since_s: float,
    until_s: float,
    deadline_s: float,
    closed: bool = False,
) -> dict[str, Any]:
    """Says what became of the requests due in [since_s, until_s): counts, rates per second, ms.

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
        "latency": record.summary(good),
        "refusal": record.summary([a.latency_s for a in refused]),
        "refusals_with_retry_after": sum(a.retry_after for a in refused),
        "lag_p99_ms": record.summary([a.sent_s - a.due_s for a in counted])["p99_ms"],
        "latencies_ms": [round(second * 1e3, 1) for second in good],
        "refusals_ms": [round(a.latency_s * 1e3, 1) for a in refused],
    }


def within(
    answers: Sequence[Answer], since_s: float, until_s: float, *, closed: bool
) -> list[Answer]:
    """Picks those due, or over if the loop is closed, from one second to another."""
    return [a for a in answers if since_s <= (a.done_s if closed else a.due_s) < until_s]


def stages_of(timing: bytes) -> dict[str, float]:
    """Reads milliseconds by stage from a Server-Timing header."""
    found = re.findall(r"(\w+);dur=([\d.]+)", timing.decode("latin-1"))
    return {name: float(value) for name, value in found}


def offer(args: argparse.Namespace, client: LoadClient) -> dict[str, Any]:
    """Makes the load that was asked for.

    `generator_cpu_s`: CPU seconds of this process, user and system, in the time that is counted;
    `generator_share`: that of all cores.
    """
    until_s, closed = args.warm + args.seconds, args.rate is None
    cpu_s: list[float] = []

    def start(finished: Finished) -> None:
        for moment in (args.warm, until_s):
            client.call_later(moment, lambda: cpu_s.append(time.process_time()))
        if args.rate is not None:
            open_loop(client, poisson(args.rate, until_s, args.seed), finished)
        else:
            closed_loop(client, args.connections, until_s, finished)

    gc.disable()
    answers = client.run(start)
    # The load may be over before its last moment.
    since, until, *_ = (*cpu_s, time.process_time(), time.process_time())
    found = summary(
        answers, since_s=args.warm, until_s=until_s, deadline_s=args.deadline, closed=closed
    )
    found["generator_cpu_s"] = round(until - since, 4)
    found["generator_share"] = round((until - since) / args.seconds / available_cores(), 4)
    if args.stages:
        counted = within(answers, args.warm, until_s, closed=closed)
        each = [stages_of(answer.timing) for answer in counted if answer.status == OK]
        names = dict.fromkeys(name for stages in each for name in stages)
        found["stages_ms"] = {
            name: [round(stages[name], 3) for stages in each if name in stages] for name in names
        }
    return found


def client_of(args: argparse.Namespace) -> LoadClient:
    """Opens a client for the URL's scheme: http, or grpc as in grpc://127.0.0.1:8001."""
    body = args.body.read_bytes()
    if urlsplit(args.url).scheme == "grpc":
        # Imported here: gRPC starts threads of its own.
        from bench.grpc_client import GrpcClient

        return GrpcClient(urlsplit(args.url).netloc, body, args.patience)
    message = request(args.url, body, args.content_type, args.header)
    return Client(args.url, message, args.patience)


def main(words: Sequence[str] | None = None) -> int:
    parser = record.parser("bench.load", __doc__)
    parser.add_argument("url")
    parser.add_argument("body", type=Path, help="the file to send")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--rate", type=float, help="open loop: requests per second on average")
    kind.add_argument("--connections", type=int, help="closed loop: clients")
    parser.add_argument("--seconds", type=float, default=10.0, help="counted")
    parser.add_argument("--warm", type=float, default=0.0, help="seconds before, not counted")
    parser.add_argument("--deadline", type=float, default=0.5, help="seconds; later is no goodput")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds, then hang up")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--stages", action="store_true", help="every answer's time by stage, too")
    parser.add_argument("--content-type", default="image/jpeg")
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'")
    args = parser.parse_args(words)
    client = client_of(args)
    try:
        found = offer(args, client)
    finally:
        client.close()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
