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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop

OK = 200
REFUSED = frozenset({429, 503})
EXPIRED = frozenset({408, 504})
"""Given up by the server after it had taken the request in."""
NO_ANSWER = 0
"""Status of a request whose connection broke or whose client hung up."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Seconds since the start of the load. `done_s` is when the last byte came, or the hanging up.
    `retry_after`: the reply said when to come back."""

    due_s: float
    sent_s: float
    done_s: float
    status: int
    retry_after: bool = False

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


class Connection(asyncio.Protocol):
    """One request at a time over one kept connection."""

    def __init__(self) -> None:
        self.open = False
        self.used = False
        self.body = b""
        self.timing = b""
        self._chunks: list[bytes] = []
        self._retry_after = False
        self._reply: asyncio.Future[tuple[int, bool]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.open = True

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self._settle(ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._settle(ConnectionError(f"not HTTP: {error}"))
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._retry_after |= name.lower() == b"retry-after"
        if name.lower() == b"server-timing":
            self.timing = value

    def on_body(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        self.body = b"".join(self._chunks)
        keep = self._parser.should_keep_alive()
        if self._reply is not None and not self._reply.done():
            self._reply.set_result((self._parser.get_status_code(), self._retry_after))
        if not keep:
            self.close()

    async def ask(self, message: bytes) -> tuple[int, bool]:
        """Status, and whether there was a Retry-After. Raises: ConnectionError."""
        if not self.open:
            raise ConnectionError("the connection is closed")
        self._parser = httptools.HttpResponseParser(self)
        self._chunks, self._retry_after, self.timing = [], False, b""
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(message)  # type: ignore[attr-defined]
        found = await self._reply
        self.used = True
        return found

    def close(self) -> None:
        self.open = False
        self._transport.close()

    def _settle(self, error: Exception) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)


class Asker(Protocol):
    """Who asks: `Client`, or another for another protocol. `stages`: of each answer that says so,
    the server's own milliseconds by stage."""

    stages: list[dict[str, float]]

    def begin(self) -> None: ...

    def now(self) -> float: ...

    async def ask(self, due_s: float) -> Answer: ...


class Client:
    """Connections to one address, taken in turn so that each of a server's workers gets its share.

    patience_s: a client waits this long after a request was due, then hangs up.
    """

    def __init__(self, url: str, message: bytes, patience_s: float) -> None:
        where = urlsplit(url)
        self._address = (str(where.hostname), where.port or 80)
        self._message = message
        self._patience_s = patience_s
        self._idle: deque[Connection] = deque()
        self._began = 0.0
        self.stages: list[dict[str, float]] = []

    def begin(self) -> None:
        """Now is second 0."""
        self._began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began

    async def ask(self, due_s: float) -> Answer:
        sent = self.now()
        connection: Connection | None = None
        status, retry_after = NO_ANSWER, False
        try:
            async with asyncio.timeout(max(0.0, self._patience_s - (sent - due_s))):
                connection = await self._connection()
                try:
                    status, retry_after = await connection.ask(self._message)
                except ConnectionError:
                    if not connection.used:
                        raise
                    # A kept connection may be closed while a request is on its way: not a refusal.
                    connection = await self._connection(fresh=True)
                    status, retry_after = await connection.ask(self._message)
        except (OSError, TimeoutError):
            if connection is not None:
                connection.close()
        done = self.now()
        if connection is not None and connection.open:
            self._idle.append(connection)
            if connection.timing:
                self.stages.append(stages_of(connection.timing))
        return Answer(due_s, sent, done, status, retry_after)

    async def _connection(self, *, fresh: bool = False) -> Connection:
        while self._idle and not fresh:
            connection = self._idle.popleft()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, *self._address)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


async def open_loop(client: Asker, due: Sequence[float]) -> list[Answer]:
    """An answer for every time in `due` (ascending, seconds), in that order."""
    client.begin()
    asked = []
    for due_s in due:
        if (wait := due_s - client.now()) > 0:
            await asyncio.sleep(wait)
        asked.append(asyncio.create_task(client.ask(due_s)))
    return await asyncio.gather(*asked)


async def closed_loop(client: Asker, connections: int, seconds: float) -> list[Answer]:
    """As many clients as `connections`, each asking again as soon as it has its answer."""
    client.begin()

    async def one() -> list[Answer]:
        found = []
        while (due := client.now()) < seconds:
            found.append(await client.ask(due))
            if found[-1].status != OK:
                await asyncio.sleep(0.01)  # a refusal costs nothing: no storm of them
        return found

    each = await asyncio.gather(*(one() for _ in range(connections)))
    return sorted((answer for found in each for answer in found), key=lambda a: a.due_s)


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


def percentiles(seconds: Sequence[float]) -> dict[str, float | None]:
    """p50, p95, p99 in milliseconds; None of nothing."""
    if not seconds:
        return {"p50_ms": None, "p95_ms": None, "p99_ms": None}
    values = np.percentile(np.asarray(seconds) * 1e3, (50, 95, 99))
    return {f"p{p}_ms": round(float(v), 2) for p, v in zip((50, 95, 99), values, strict=True)}


async def offer(args: argparse.Namespace, client: Asker) -> dict[str, Any]:
    seconds = args.warm + args.seconds
    gc.disable()
    if args.rate is not None:
        answers = await open_loop(client, poisson(args.rate, seconds, args.seed))
    else:
        answers = await closed_loop(client, args.connections, seconds)
    found = summary(answers, since_s=args.warm, until_s=seconds, deadline_s=args.deadline)
    counted = [a for a in answers if a.status == OK and a.due_s >= args.warm]
    if args.stages:
        found["stages_ms"] = {
            stage: [round(each[stage], 3) for each in client.stages if stage in each]
            for stage in (client.stages[0] if client.stages else ())
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
