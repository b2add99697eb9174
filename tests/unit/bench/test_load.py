"""The load generator: arrivals as drawn, latency from when a request was due."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from bench import load

Reply = Callable[[int], Awaitable[bytes]]
"""Number of the request (from 0) -> the bytes of the answer."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
FULL = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@asynccontextmanager
async def server(reply: Reply) -> AsyncIterator[tuple[str, list[bytes]]]:
    """URL, and the bodies that came."""
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                bodies.append(await reader.readexactly(length))
                answer = await reply(len(bodies) - 1)
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield f"http://127.0.0.1:{port}/segment", bodies


def client(url: str, patience_s: float = 5.0) -> load.Client:
    return load.Client(url, load.request(url, b"body", "image/jpeg", ["X-A: b"]), patience_s)


def test_arrivals_are_poisson() -> None:
    due = load.poisson(50.0, 200.0, seed=1)
    gaps = np.diff(due)
    assert len(due) == pytest.approx(10_000, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential: as wide as long
    assert due == load.poisson(50.0, 200.0, seed=1) != load.poisson(50.0, 200.0, seed=2)
    assert max(due) < 200.0


async def test_stall_is_charged_to_everybody_who_came_meanwhile() -> None:
    """The server answers one request at a time and sleeps 0.3 s on the first."""
    turn = asyncio.Lock()

    async def reply(number: int) -> bytes:
        async with turn:
            await asyncio.sleep(0.3 if number == 0 else 0)
        return OK

    async with server(reply) as (url, bodies):
        asking = client(url)
        answers = await load.open_loop(asking, [0.0, 0.05, 0.1, 0.15, 0.6])
        asking.close()
    assert bodies == [b"body"] * 5
    assert [a.status for a in answers] == [200] * 5
    for answer, least in zip(answers, (0.3, 0.25, 0.2, 0.15), strict=False):
        assert least - 0.01 < answer.latency_s < least + 0.1
    assert answers[4].latency_s < 0.1
    found = load.summary(answers, since_s=0.0, until_s=1.0, deadline_s=0.22)
    assert (found["answered"], found["late"], found["goodput_per_s"]) == (5, 2, 3.0)
    assert found["lag_p99_ms"] < 50


async def test_late_generator_is_charged_too() -> None:
    """Due in the past: latency counts from then, and the lag says whose fault it is."""

    async def reply(number: int) -> bytes:
        return OK

    async with server(reply) as (url, _):
        asking = client(url)
        (answer,) = await load.open_loop(asking, [-0.2])
        asking.close()
    assert answer.latency_s > 0.2
    assert answer.sent_s - answer.due_s == pytest.approx(0.2, abs=0.05)


async def test_refusals_hang_ups_and_errors_are_told_apart() -> None:
    async def reply(number: int) -> bytes:
        if number == 1:
            return FULL
        if number == 2:
            await asyncio.sleep(30)
        if number == 3:
            return b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"
        if number == 4:
            return b"HTTP/1.1 504 Late\r\nContent-Length: 0\r\n\r\n"
        return CHUNKED if number == 0 else LAST

    async with server(reply) as (url, _):
        asking = client(url, patience_s=0.3)
        answers = await load.open_loop(asking, [0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12])
        asking.close()
    assert [a.status for a in answers] == [200, 429, 0, 500, 504, 200, 200]
    assert answers[2].latency_s == pytest.approx(0.3, abs=0.1)
    found = load.summary(answers, since_s=0.0, until_s=2.0, deadline_s=0.5)
    assert found["answered"] == 3
    assert (found["refused"], found["refusals_with_retry_after"]) == (1, 1)
    assert (found["hung_up"], found["expired"], found["other_errors"]) == (1, 1, 1)
    assert found["offered_per_s"] == 3.5
    assert found["refusal"]["p99_ms"] < 200
    # What is due outside the window is not counted.
    later = load.summary(answers, since_s=0.05, until_s=1.05, deadline_s=0.5)
    assert (later["offered_per_s"], later["refused"], later["hung_up"]) == (4.0, 0, 0)


async def test_nobody_listens() -> None:
    asking = client("http://127.0.0.1:9/segment")
    (answer,) = await load.open_loop(asking, [0.0])
    assert answer.status == load.NO_ANSWER
    found = load.summary([answer], since_s=0.0, until_s=1.0, deadline_s=0.5)
    assert found["hung_up"] == 1
    assert found["latency"]["p50_ms"] is None


async def test_closed_loop_keeps_its_number_of_clients() -> None:
    inside, most = 0, 0

    async def reply(number: int) -> bytes:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return OK

    async with server(reply) as (url, bodies):
        asking = client(url)
        answers = await load.closed_loop(asking, connections=3, seconds=0.3)
        asking.close()
    assert most == 3
    assert len(answers) == len(bodies)
    assert 20 < len(answers) <= 93
    assert all(a.status == 200 for a in answers)
