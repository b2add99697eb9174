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
import asyncio
import gc
import json
import random
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import httptools
import uvloop

from service.core.cores import available_cores

OK = 200
REFUSED = frozenset({429, 503})
EXPIRED = frozenset({408, 504})
"""Given up by the server after it had taken the request in."""
NO_ANSWER = 0
"""Status of a request whose connection broke or whose client hung up."""
_TICK_S = 0.0005
"""Half of the resolution of the event loop's timers."""
_RETRY_AFTER, _SERVER_TIMING = len(b"retry-after"), len(b"server-timing")


class Answer(NamedTuple):
    """Seconds since the start of the load. `done_s` is when the last byte came, or the hanging up.
    `retry_after`: the reply said when to come back. `timing`: its Server-Timing, or nothing."""

    due_s: float
    sent_s: float
    done_s: float
    status: int
    retry_after: bool = False
    timing: bytes = b""

    @property
    def latency_s(self) -> float:
        return self.done_s - self.due_s


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
    """Who asks: `Client`, or another for another protocol."""

    def begin(self) -> None: ...

    def now(self) -> float: ...

    def ask(self, due_s: float, done: Callable[[Answer], None]) -> None: ...


@dataclass(slots=True, eq=False)
class Asked:
    """A request under way. `again`: it has been sent a second time."""

    due_s: float
    sent_s: float
    done: Callable[[Answer], None] | None
    connection: Connection | None = None
    opening: asyncio.Task[None] | None = None
    again: bool = False


class Connection(asyncio.Protocol):
    """One request at a time over one kept connection."""

    def __init__(self, client: Client) -> None:
        self.open = False
        self.used = False
        self._client = client
        self._asked: Asked | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data
        self._retry_after = False
        self._timing = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but name.
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def send(self, message: bytes, asked: Asked) -> None:
        self._asked, asked.connection = asked, self
        self._retry_after, self._timing = False, b""
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.close()
            self._lost()

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self._lost()

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == _RETRY_AFTER and name.lower() == b"retry-after":
            self._retry_after = True
        elif len(name) == _SERVER_TIMING and name.lower() == b"server-timing":
            self._timing = value

    def on_message_complete(self) -> None:
        self.used = True
        if not self._parser.should_keep_alive():
            self.close()
        if (asked := self._asked) is not None:
            self._asked = None
            if self.open:
                self._client.idle.append(self)
            status = self._parser.get_status_code()
            self._client.settle(asked, status, self._retry_after, self._timing)

    def drop(self) -> None:
        """Its client hangs up: what still comes is for nobody."""
        self._asked = None
        self.close()

    def close(self) -> None:
        self.open = False
        self._transport.close()

    def _lost(self) -> None:
        if (asked := self._asked) is not None:
            self._asked = None
            self._client.lost(asked, may_ask_again=self.used)


class Client:
    """Connections to one address, taken in turn so that each of a server's workers gets its share.

    patience_s: a client waits this long after a request was due, then hangs up. Everything is done
    in callbacks, for a task, a timeout and a future to each request were half of what it cost.
    """

    def __init__(self, url: str, message: bytes, patience_s: float) -> None:
        where = urlsplit(url)
        self._address = (str(where.hostname), where.port or 80)
        self._message = message
        self._patience_s = patience_s
        self.idle: deque[Connection] = deque()
        self._began = 0.0
        # All have the same patience, so they lose it in the order in which they were due.
        self._waiting: deque[Asked] = deque()
        self._watch: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Now is second 0."""
        self._began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began

    def ask(self, due_s: float, done: Callable[[Answer], None]) -> None:
        """`done` is called once, later. due_s: not before that of the request asked last."""
        asked = Asked(due_s, self.now(), done)
        self._waiting.append(asked)
        if self._watch is None:
            self._watch_from(asked)
        while self.idle:
            if (connection := self.idle.popleft()).open:
                connection.send(self._message, asked)
                return
        self._connect(asked)

    def settle(
        self, asked: Asked, status: int, retry_after: bool = False, timing: bytes = b""
    ) -> None:
        done, asked.done, asked.connection = asked.done, None, None
        if done is not None:
            done(Answer(asked.due_s, asked.sent_s, self.now(), status, retry_after, timing))

    def lost(self, asked: Asked, *, may_ask_again: bool) -> None:
        # A kept connection may be closed while a request is on its way: not a refusal.
        if may_ask_again and not asked.again:
            asked.again = True
            self._connect(asked)
        else:
            self.settle(asked, NO_ANSWER)

    def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for connection in self.idle:
            connection.close()

    def _connect(self, asked: Asked) -> None:
        asked.opening = asyncio.get_running_loop().create_task(self._opened(asked))

    async def _opened(self, asked: Asked) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self), *self._address)
        except OSError:
            self.settle(asked, NO_ANSWER)
        else:
            if asked.done is None:  # hung up meanwhile
                connection.close()
            else:
                connection.send(self._message, asked)
        finally:
            asked.opening = None

    def _watch_from(self, first: Asked) -> None:
        wait = max(0.0, first.due_s + self._patience_s - self.now())
        self._watch = asyncio.get_running_loop().call_later(wait, self._hang_up)

    def _hang_up(self) -> None:
        """One timer for all: goes on to the first who still waits."""
        self._watch = None
        late = self.now() - self._patience_s + _TICK_S
        while self._waiting:
            asked = self._waiting[0]
            if asked.done is not None:
                if asked.due_s > late:
                    self._watch_from(asked)
                    return
                if asked.opening is not None:
                    asked.opening.cancel()
                if asked.connection is not None:
                    asked.connection.drop()
                self.settle(asked, NO_ANSWER)
            self._waiting.popleft()


async def open_loop(client: Asker, due: Sequence[float]) -> list[Answer]:
    """An answer for every time in `due` (ascending, seconds), in that order."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    answers: list[Answer] = []
    sent = 0

    def answered(answer: Answer) -> None:
        answers.append(answer)
        if len(answers) == len(due):
            finished.set_result(None)

    def send() -> None:
        nonlocal sent
        while sent < len(due):
            if (wait := due[sent] - client.now()) > _TICK_S:
                loop.call_later(wait, send)
                return
            client.ask(due[sent], answered)
            sent += 1

    client.begin()
    if due:
        send()
        await finished
    return sorted(answers, key=lambda answer: answer.due_s)


async def closed_loop(client: Asker, connections: int, seconds: float) -> list[Answer]:
    """As many clients as `connections`, each asking again as soon as it has its answer."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    answers: list[Answer] = []
    left = connections

    def send() -> None:
        nonlocal left
        if (due := client.now()) < seconds:
            client.ask(due, answered)
        elif (left := left - 1) == 0:
            finished.set_result(None)

    def answered(answer: Answer) -> None:
        answers.append(answer)
        if answer.status == OK:
            send()
        else:
            loop.call_later(0.01, send)  # a refusal costs nothing: no storm of them

    client.begin()
    for _ in range(connections):
        send()
    await finished
    return sorted(answers, key=lambda answer: answer.due_s)


class Meter:
    """CPU seconds of this process, user and system, from one second of the load to another."""

    def __init__(self, since_s: float, until_s: float) -> None:
        self._seconds: list[float] = []
        loop = asyncio.get_running_loop()
        for moment in (since_s, until_s):
            loop.call_later(moment, lambda: self._seconds.append(time.process_time()))

    def cpu_s(self) -> float:
        """Until now, if the load was over before."""
        since, until, *_ = (*self._seconds, time.process_time(), time.process_time())
        return until - since


def summary(
    answers: Sequence[Answer], *, since_s: float, until_s: float, deadline_s: float
) -> dict[str, Any]:
    """What became of the requests due in [since_s, until_s): counts, rates per second, ms.

    `goodput_per_s`: answered 200 within the deadline. `lag_p99_ms`: how late the generator sent;
    near the latencies, it is the generator that was measured.
    """
    span = until_s - since_s
    counted = [a for a in answers if since_s <= a.due_s < until_s]
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
    found = {}
    for percent in (50, 95, 99):
        # As numpy does it, which takes 0.1 s of a core to import and starts threads that spin.
        place = (len(values) - 1) * percent / 100
        below = int(place)
        above = min(below + 1, len(values) - 1)
        value = values[below] + (values[above] - values[below]) * (place - below)
        found[f"p{percent}_ms"] = round(float(value) * 1e3, 2)
    return found


async def offer(args: argparse.Namespace, client: Asker) -> dict[str, Any]:
    seconds = args.warm + args.seconds
    gc.disable()
    meter = Meter(args.warm, seconds)
    if args.rate is not None:
        answers = await open_loop(client, poisson(args.rate, seconds, args.seed))
    else:
        answers = await closed_loop(client, args.connections, seconds)
    cpu_s = meter.cpu_s()
    found = summary(answers, since_s=args.warm, until_s=seconds, deadline_s=args.deadline)
    found["generator_cpu_s"] = round(cpu_s, 4)
    found["generator_share"] = round(cpu_s / args.seconds / available_cores(), 4)
    counted = [a for a in answers if a.status == OK and a.due_s >= args.warm]
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

    async def run() -> dict[str, Any]:
        message = request(args.url, args.body.read_bytes(), args.content_type, args.header)
        client = Client(args.url, message, args.patience)
        try:
            return await offer(args, client)
        finally:
            client.close()

    print(json.dumps(uvloop.run(run())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
