"""The load generator: arrivals as drawn, latency from when a request was due."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bench import load
from bench.http_client import NO_ANSWER, Answer, Client
from cli._simulation import poisson
from service.core.engines.cores import available_cores

Reply = Callable[[int], Awaitable[bytes]]
"""Number of the request (from 0) -> the bytes of the answer."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
TIMED = b"HTTP/1.1 200 OK\r\nServer-Timing: infer;dur=1.5\r\nContent-Length: 0\r\n\r\n"
FULL = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
NOTHING = b""
"""The connection is closed without an answer."""
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def server(reply: Reply) -> Iterator[tuple[str, list[bytes]]]:
    """URL, and the bodies that came. In a thread: a load runs in an event loop of its own."""
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
                if answer in (LAST, NOTHING):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def listen() -> None:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        ended = asyncio.Event()
        running.put((asyncio.get_running_loop(), ended, listener.sockets[0].getsockname()[1]))
        await ended.wait()
        listener.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    running: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = queue.Queue()
    thread = threading.Thread(target=asyncio.run, args=(listen(),))
    thread.start()
    loop, ended, port = running.get(timeout=10)
    try:
        yield f"http://127.0.0.1:{port}/segment", bodies
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)


@contextmanager
def client(url: str, patience_s: float = 5.0, body: bytes = b"body") -> Iterator[Client]:
    asking = Client(url, load.request(url, body, "image/jpeg", ["X-A: b"]), patience_s)
    try:
        yield asking
    finally:
        asking.close()


def open_loop(asking: Client, due: Sequence[float]) -> list[Answer]:
    return asking.run(lambda finished: load.open_loop(asking, due, finished))


def test_arrivals_are_poisson() -> None:
    due = poisson(50.0, 200.0, seed=1)
    gaps = np.diff(due)
    assert len(due) == pytest.approx(10_000, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # exponential: as wide as long
    assert due == poisson(50.0, 200.0, seed=1) != poisson(50.0, 200.0, seed=2)
    assert max(due) < 200.0


def test_stall_is_charged_to_everybody_who_came_meanwhile() -> None:
    """The server answers one request at a time and sleeps 0.6 s on the first."""
    turn = asyncio.Lock()

    async def reply(number: int) -> bytes:
        async with turn:
            await asyncio.sleep(0.6 if number == 0 else 0)
        return OK

    with server(reply) as (url, bodies), client(url) as asking:
        answers = open_loop(asking, [0.0, 0.05, 0.4, 0.45, 1.2])
    assert bodies == [b"body"] * 5
    assert [a.status for a in answers] == [200] * 5
    for answer, least in zip(answers, (0.6, 0.55, 0.2, 0.15), strict=False):
        assert answer.latency_s > least - 0.01
    found = load.summary(answers, since_s=0.0, until_s=1.5, deadline_s=0.4)
    late = sum(answer.latency_s > 0.4 for answer in answers)
    assert (found["answered"], found["late"]) == (5, late) and late >= 2
    assert found["goodput_per_s"] == pytest.approx((5 - late) / 1.5, abs=0.01)


def test_late_generator_is_charged_too() -> None:
    """Due in the past: latency counts from then, and the lag says whose fault it is."""

    async def reply(number: int) -> bytes:
        return OK

    with server(reply) as (url, _), client(url) as asking:
        (answer,) = open_loop(asking, [-0.2])
    assert answer.latency_s > 0.2
    assert answer.sent_s - answer.due_s >= 0.2


def test_refusals_hang_ups_and_errors_are_told_apart() -> None:
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

    with server(reply) as (url, _), client(url, patience_s=0.3) as asking:
        answers = open_loop(asking, [0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12])
    assert [a.status for a in answers] == [200, 429, 0, 500, 504, 200, 200]
    assert answers[2].latency_s > 0.29
    found = load.summary(answers, since_s=0.0, until_s=2.0, deadline_s=0.5)
    assert found["answered"] == 3
    assert (found["refused"], found["refusals_with_retry_after"]) == (1, 1)
    assert (found["hung_up"], found["expired"], found["other_errors"]) == (1, 1, 1)
    assert found["offered_per_s"] == 3.5
    assert found["refusal"]["count"] == 1
    # What is due outside the window is not counted.
    later = load.summary(answers, since_s=0.05, until_s=1.05, deadline_s=0.5)
    assert (later["offered_per_s"], later["refused"], later["hung_up"]) == (4.0, 0, 0)


def test_nobody_listens() -> None:
    with client("http://127.0.0.1:9/segment") as asking:
        (answer,) = open_loop(asking, [0.0])
    assert answer.status == NO_ANSWER
    found = load.summary([answer], since_s=0.0, until_s=1.0, deadline_s=0.5)
    assert found["hung_up"] == 1
    assert found["latency"]["p50_ms"] is None


def test_closed_loop_keeps_its_number_of_clients() -> None:
    inside, most = 0, 0

    async def reply(number: int) -> bytes:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return OK

    with server(reply) as (url, bodies), client(url) as asking:
        answers = asking.run(lambda finished: load.closed_loop(asking, 3, 0.3, finished))
    assert most == 3
    assert len(answers) == len(bodies)
    assert 3 < len(answers) <= 93
    assert all(a.status == 200 for a in answers)


def test_generator_knows_its_own_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def reply(number: int) -> bytes:
        return TIMED

    (tmp_path / "body").write_bytes(b"x" * 50_000)
    with server(reply) as (url, _):
        words = ["--rate", "100", "--seconds", "0.5", "--warm", "0.2", "--stages"]
        assert load.main([url, str(tmp_path / "body"), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    # The server of this test is a thread of the same process.
    assert 0 < found["generator_cpu_s"] < 2
    assert found["generator_share"] == pytest.approx(
        found["generator_cpu_s"] / 0.5 / available_cores(), abs=1e-3
    )
    assert found["answered"] == len(found["latencies_ms"]) > 20
    assert found["stages_ms"] == {"infer": [1.5] * found["answered"]}


def test_kept_connection_that_was_closed_is_no_refusal() -> None:
    """The second request over it is lost and sent again; a fresh connection's is not."""

    async def reply(number: int) -> bytes:
        return OK if number in (0, 2) else NOTHING

    with server(reply) as (url, bodies), client(url) as asking:
        answers = open_loop(asking, [0.0, 0.05, 0.1])
    # 1 is lost and comes again as 2, which is answered; 3 is lost, and so is 4, on a fresh one.
    assert [a.status for a in answers] == [200, 200, NO_ANSWER]
    assert len(bodies) == 5


def test_large_bodies_go_whole_and_replies_come_in_pieces() -> None:
    body = bytes(range(256)) * 40_000  # 10 MB: more than a socket takes at once

    async def reply(number: int) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + b"y" * 3_000_000

    with server(reply) as (url, bodies), client(url, body=body) as asking:
        answers = open_loop(asking, [0.0, 0.0, 0.4])
    assert [a.status for a in answers] == [200] * 3
    assert bodies == [body] * 3


def test_what_is_not_http_is_no_answer() -> None:
    async def reply(number: int) -> bytes:
        return b"SSH-2.0-OpenSSH\r\n"

    with server(reply) as (url, _), client(url) as asking:
        (answer,) = open_loop(asking, [0.0])
    assert answer.status == NO_ANSWER
    assert answer.latency_s < 4.0  # of the 5 s that it would wait


def test_closed_loop_counts_by_when_it_was_over() -> None:
    """Counted by when they were due, those under way at the end would be on top."""
    answers = [Answer(due, due, due + 1.0, load.OK)
               for due in (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5)]  # fmt: skip
    counts = {
        closed: load.summary(answers, since_s=0.0, until_s=3.0, deadline_s=2.0, closed=closed)
        for closed in (True, False)
    }
    assert counts[True]["answered"] == 5
    assert counts[False]["answered"] == 6


def test_a_grpc_server_that_is_not_there_is_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "body").write_bytes(b"body")
    words = ["--connections", "1", "--seconds", "0.3", "--patience", "0.2"]
    assert load.main(["grpc://127.0.0.1:9", str(tmp_path / "body"), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answered"] == 0
    assert found["refused"] + found["expired"] > 0


def test_stages_are_read_from_the_header() -> None:
    assert load.stages_of(b"decode;dur=1.5, infer;dur=20.25") == {"decode": 1.5, "infer": 20.25}
    assert load.stages_of(b"cache") == {}
