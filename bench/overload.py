"""What a server does with more requests than it can answer.

    python -m bench.overload [--url http://host:port] [--seconds 8] [--loads 0.7,2,3]

Starts `fcn serve` with its defaults (or uses the server at --url), measures its capacity with eight
connections in a closed loop, and then offers multiples of it in an open loop: Poisson arrivals that
wait for nobody, each on a connection of its own while it lasts. Every request asks for its answer
within --deadline-ms, counted from the moment it was due, not from the moment it could be written.

goodput: answers in time, per second of arrivals; refusal: from the request's last byte written to
the 429; recovery: from the end of the arrivals until a request is answered as fast as at rest.

The load generator is one process with one thread. It shares the machine's cores with the server, as
clients would not, and its share grows with the load.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

from bench import record
from bench.segment_load import Server, jpeg

SIZE = (360, 480)
CONNECTIONS = 8
GIVE_UP_S = 10.0


@dataclass(slots=True)
class Answer:
    """status: 0 when the connection broke. Moments of time.perf_counter()."""

    status: int
    due_s: float
    written_s: float
    answered_s: float
    retry_after: str = ""

    @property
    def latency_s(self) -> float:
        return self.answered_s - self.due_s


class Connection(asyncio.Protocol):
    """HTTP/1.1 with one request at a time, and no more of it than the bench needs."""

    def __init__(self) -> None:
        self.usable = False
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: asyncio.Future[tuple[int, str]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but name.
        self._transport, self.usable = cast(asyncio.Transport, transport), True

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        self._settle(0, "")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].decode("latin-1").lower()
        fields = dict(line.partition(": ")[::2] for line in head.split("\r\n")[1:])
        if len(self._buffer) < end + 4 + int(fields.get("content-length", "0")):
            return
        self._buffer.clear()
        if fields.get("connection") == "close":
            self.usable = False
        self._settle(int(head.split(" ", 2)[1]), fields.get("retry-after", ""))

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, str]]:
        """Status and Retry-After; status 0 when the connection breaks."""
        self._waiting = asyncio.get_running_loop().create_future()
        if self._transport is None or not self.usable:
            self._settle(0, "")
        else:
            self._transport.write(request)
        return self._waiting

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _settle(self, status: int, retry_after: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((status, retry_after))


class Client:
    """As many connections as there are requests under way, kept for the next."""

    def __init__(self, url: str, deadline_ms: int, bodies: Sequence[bytes]) -> None:
        """bodies: JPEG files, asked about in turns."""
        self._host, self._port = str(urlsplit(url).hostname), urlsplit(url).port
        self._idle: list[Connection] = []
        self.opened = 0
        self._requests = [
            f"POST /segment?deadline_ms={deadline_ms} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
            for body in bodies
        ]

    async def prepare(self, connections: int) -> None:
        """Opens so many beforehand: a burst of new connections is another matter."""
        self._idle += [await self._open() for _ in range(connections)]

    async def send(self, number: int, due_s: float) -> Answer:
        connection = await self._connection()
        written_s = time.perf_counter()
        try:
            async with asyncio.timeout(GIVE_UP_S):
                status, retry_after = await connection.ask(
                    self._requests[number % len(self._requests)]
                )
        except TimeoutError:
            status, retry_after = 0, ""
            connection.usable = False
        answered_s = time.perf_counter()
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()
        return Answer(status, due_s, written_s, answered_s, retry_after)

    async def _connection(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
        return await self._open()

    async def _open(self) -> Connection:
        self.opened += 1
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


async def closed_loop(client: Client, connections: int, seconds: float) -> list[Answer]:
    """Each connection asks again as soon as it is answered; those answered 429 wait 10 ms."""
    ends = time.perf_counter() + seconds

    async def one(first: int) -> list[Answer]:
        answers = []
        number = first
        while time.perf_counter() < ends:
            answers.append(await client.send(number, time.perf_counter()))
            number += 1
            if answers[-1].status != 200:
                await asyncio.sleep(0.01)
        return answers

    return [a for found in await asyncio.gather(*map(one, range(connections))) for a in found]


async def open_loop(client: Client, per_s: float, seconds: float, seed: int) -> list[Answer]:
    """Poisson arrivals, on time whatever becomes of those before."""
    rng = np.random.default_rng(seed)
    moments = np.cumsum(rng.exponential(1 / per_s, int(per_s * seconds * 2) + 10))
    began = time.perf_counter()
    tasks = []
    for number, moment in enumerate(moments[moments < seconds]):
        due_s = began + float(moment)
        if (delay_s := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(delay_s)
        tasks.append(asyncio.create_task(client.send(number, due_s)))
    return list(await asyncio.gather(*tasks))


async def recovery(client: Client, rest_s: float) -> float:
    """Seconds until one request alone takes at most half as long again as at rest."""
    began = time.perf_counter()
    for number in range(1000):
        answer = await client.send(number, time.perf_counter())
        if answer.status == 200 and answer.latency_s <= 1.5 * rest_s:
            break
        await asyncio.sleep(0.005)
    return answer.written_s - began


def judged(
    answers: Sequence[Answer], seconds: float, deadline_s: float, capacity: float
) -> dict[str, Any]:
    accepted = [a.latency_s for a in answers if a.status == 200]
    in_time = sum(latency <= deadline_s for latency in accepted)
    refused = [a for a in answers if a.status == 429]
    row: dict[str, Any] = {
        "offered": len(answers),
        "statuses": {str(k): n for k, n in sorted(Counter(a.status for a in answers).items())},
        "goodput_per_s": round(in_time / seconds, 2),
        "goodput_of_capacity": round(in_time / seconds / capacity, 3),
        "goodput_of_what_could_be": round(in_time / min(len(answers), seconds * capacity), 3),
        "late": len(accepted) - in_time,
        "accepted": record.summary(accepted) if accepted else None,
        "refused_without_retry_after": sum(not a.retry_after for a in refused),
    }
    if refused:
        row["refusal"] = record.summary([a.answered_s - a.written_s for a in refused])
    return row


async def measure(
    url: str, loads: Sequence[float], seconds: float, deadline_ms: int, capacity_s: float
) -> dict[str, Any]:
    client = Client(url, deadline_ms, [jpeg(*SIZE, seed) for seed in range(8)])
    await client.prepare(CONNECTIONS)
    try:
        await closed_loop(client, CONNECTIONS, 1.0)  # the pace is known, memory is there
        rest = [a.latency_s for a in await closed_loop(client, 1, 1.5) if a.status == 200]
        rest_s = float(np.median(rest))
        closed = await closed_loop(client, CONNECTIONS, capacity_s)
        span_s = max(a.answered_s for a in closed) - min(a.written_s for a in closed)
        good = [a.latency_s for a in closed if a.status == 200]
        if not good:
            raise SystemExit(f"no request was answered: {Counter(a.status for a in closed)}")
        capacity = len(good) / span_s
        rows = []
        for number, load in enumerate(loads):
            await client.prepare(int(capacity * load))
            answers = await open_loop(client, capacity * load, seconds, number)
            # From the last arrival: what was accepted by then is still to be answered.
            late_s = max(0.0, time.perf_counter() - max(a.due_s for a in answers))
            recovered_s = late_s + await recovery(client, rest_s)
            row = judged(answers, seconds, deadline_ms / 1000, capacity)
            rows.append({"load": load, **row, "recovery_s": round(recovered_s, 3)})
            await asyncio.sleep(0.5)
    finally:
        client.close()
    return {
        "capacity_per_s": round(capacity, 2),
        "closed_loop": {"connections": CONNECTIONS, **record.summary(good)},
        "at_rest_ms": round(1000 * rest_s, 2),
        "deadline_ms": deadline_ms,
        "seconds_per_load": seconds,
        "connections_opened": client.opened,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="goodput and refusals under overload")
    parser.add_argument("--url", help="a server that runs; without it one is started")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--loads", default="0.7,2,3", help="multiples of the capacity")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each load")
    parser.add_argument("--capacity-s", type=float, default=6.0, help="seconds of the closed loop")
    parser.add_argument("--deadline-ms", type=int, default=500)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "overload.json")
    args = parser.parse_args()
    loads = [float(load) for load in args.loads.split(",")]
    server = None if args.url else Server(args.repository)
    try:
        url = args.url or server.url if server else args.url
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(measure(url, loads, args.seconds, args.deadline_ms, args.capacity_s))
    finally:
        if server is not None:
            with contextlib.suppress(ProcessLookupError):
                server.stop()
    print_table(found)
    record.write(args.out, found)


def print_table(found: dict[str, Any]) -> None:
    print(
        f"capacity {found['capacity_per_s']} images/s, at rest {found['at_rest_ms']} ms\n"
        "| load | goodput | of capacity | accepted p50 | p99 | refused | p50 | p99 | late | "
        "recovery |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for row in found["rows"]:
        accepted = row["accepted"] or {"p50_ms": float("nan"), "p99_ms": float("nan")}
        refusal = row.get("refusal", {"p50_ms": 0.0, "p99_ms": 0.0})
        print(
            f"| {row['load']:g}x | {row['goodput_per_s']}/s | {row['goodput_of_capacity']} "
            f"| {accepted['p50_ms']:.0f} ms | {accepted['p99_ms']:.0f} ms "
            f"| {row['statuses'].get('429', 0)} | {refusal['p50_ms']:.1f} ms "
            f"| {refusal['p99_ms']:.1f} ms | {row['late']} | {row['recovery_s']} s |"
        )


if __name__ == "__main__":
    main()
