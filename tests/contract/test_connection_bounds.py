"""One HTTP connection, and all together, hold and wait for so much: by short bounds, on a real
server, in front of small applications."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

from service.config import ApiConfig
from service.connections import Bounds
from service.listening import HttpServer, listen
from service.telemetry import Ending, Telemetry
from service.tls import Certificates
from tests.link import Link
from tests.serving import running
from tests.tiny_models import write_model
from tests.waiting import soon

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n"
LARGE = bytes(4 * 1024 * 1024)
"""More than the systems of both sides keep for a caller with a small window."""
DEADLINE_S = 30.0
App = Callable[[Any, Any, Any], Awaitable[None]]


def answering(body: bytes) -> App:
    """Answers at once, whatever the request; its body is not read."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def reading(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the request's body."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await answering(body)(scope, receive, send)


class Site:
    """A running server."""

    def __init__(
        self, http: HttpServer, telemetry: Telemetry, listeners: list[socket.socket]
    ) -> None:
        self.http = http
        self.listeners = listeners
        self.address: tuple[str, int] = listeners[0].getsockname()
        self._telemetry = telemetry
        self._sockets: list[socket.socket] = []

    async def connect(
        self, data: bytes = b"", *, source: str = "127.0.0.1", window: int = 0
    ) -> socket.socket:
        """A connection that has sent `data`. window: of what it takes unasked, in bytes."""
        link = socket.socket()
        self._sockets.append(link)
        if window:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        link.bind((source, 0))
        link.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(link, self.address)
        await loop.sock_sendall(link, data)
        return link

    def metric(self, series: str) -> float:
        found = re.search(rf"^{re.escape(series)} (\S+)$", self._telemetry.scrape().decode(), re.M)
        return float(found[1]) if found else -1.0

    def ended(self, why: str) -> float:
        return self.metric(f'fcn_connections_closed_total{{reason="{why}"}}')

    def close(self) -> None:
        for link in self._sockets:
            link.close()


async def rest_of(link: socket.socket) -> bytes:
    """All that comes until the server ends the connection, in order or by a reset."""
    data = b""
    async with asyncio.timeout(DEADLINE_S):
        try:
            while part := await asyncio.get_running_loop().sock_recv(link, 65536):
                data += part
        except ConnectionResetError:
            pass
    return data


async def answer(link: socket.socket, data: bytes = GET) -> bytes:
    """The first bytes of what comes back for it."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(link, data)
    async with asyncio.timeout(DEADLINE_S):
        return await loop.sock_recv(link, 65536)


@asynccontextmanager
async def serving(
    app: App, certificates: Certificates | None = None, **bounds: float
) -> AsyncIterator[Site]:
    telemetry = Telemetry(0.175)
    limits = Bounds(**bounds)  # type: ignore[arg-type]
    http = HttpServer(app, ApiConfig(), telemetry, limits, certificates)
    sockets = listen("127.0.0.1", 0, "FCN_HTTP_PORT")
    site = Site(http, telemetry, sockets)
    running = asyncio.create_task(http.serve(sockets=sockets))
    await soon(lambda: http.started)
    try:
        yield site
    finally:
        site.close()
        http.should_exit = True
        await running


async def test_every_way_to_end_is_counted_from_the_start() -> None:
    async with serving(answering(b"")) as site:
        assert {why: site.ended(why) for why in get_args(Ending)} == dict.fromkeys(
            get_args(Ending), 0.0
        )
        assert site.metric("fcn_connections") == 0
        link = await site.connect(GET)
        await soon(lambda: site.metric("fcn_connections") == 1)
        link.close()
        await soon(lambda: site.metric("fcn_connections") == 0)
        assert site.ended("caller") == 1
        assert b" 200 " in await rest_of(await site.connect(LAST))
        await soon(lambda: site.ended("answered") == 1)


@pytest.mark.parametrize("before", [b"", GET], ids=["at first", "after an answer"])
async def test_a_silent_connection_is_closed(before: bytes) -> None:
    async with serving(answering(b""), idle_s=0.2) as site:
        link = await site.connect(before)
        assert (await rest_of(link)).count(b"HTTP/1.1 ") == bool(before)
        assert site.ended("idle") == 1


@pytest.mark.parametrize("before", [b"", GET], ids=["at first", "after an answer"])
async def test_a_head_that_does_not_come_is_answered_408(before: bytes) -> None:
    async with serving(answering(b""), head_s=0.2) as site:
        data = await rest_of(await site.connect(before + GET[:20]))
        assert b"HTTP/1.1 408 " in data
        assert b"longer than 0.2 s" in data
        assert site.ended("slow_head") == 1


async def test_a_head_that_comes_byte_by_byte_has_no_more_time() -> None:
    async with serving(answering(b""), head_s=0.3) as site:
        link = await site.connect(GET[:20])

        async def trickle() -> None:
            while True:
                await asyncio.get_running_loop().sock_sendall(link, b"a")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        assert b"HTTP/1.1 408 " in await rest_of(link)
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)


async def test_a_body_that_does_not_come_ends_the_connection() -> None:
    async with serving(reading, body_s=0.2) as site:
        assert await rest_of(await site.connect(POST + b"abc")) == b""
        assert site.ended("slow_body") == 1


async def test_the_rest_of_a_body_that_was_answered_is_not_waited_for() -> None:
    async with serving(answering(b"early"), rest_of_body_s=0.2) as site:
        assert b"early" in await rest_of(await site.connect(POST + b"abc"))
        assert site.ended("slow_body") == 1
        # Whoever sends it goes on.
        link = await site.connect(POST + b"abc")
        assert b"early" in await answer(link, b"")
        assert b"early" in await answer(link, b"defghij" + GET)


async def test_who_does_not_read_is_left() -> None:
    async with serving(answering(LARGE), reading_s=0.3) as site:
        link = await site.connect(GET, window=4096)
        await soon(lambda: site.ended("unread") == 1)
        assert len(await rest_of(link)) < len(LARGE)


async def test_who_reads_slowly_gets_all() -> None:
    """For many times as long as a reader may do nothing, with more than is asked for each time."""
    async with serving(answering(LARGE), reading_s=0.3) as site:
        link = await site.connect(GET, window=65536)
        received = 0
        async with asyncio.timeout(2 * DEADLINE_S):
            while received < len(LARGE):
                await asyncio.sleep(0.05)
                part = await asyncio.get_running_loop().sock_recv(link, 131072)
                assert part, "the server ended the connection"
                received += len(part)
        assert site.ended("unread") == 0


async def test_answers_that_nobody_reads_are_bounded_over_all_connections() -> None:
    """The last one always fits; those who have read nothing for the longest go first."""
    async with serving(answering(LARGE), max_unread_bytes=2 * len(LARGE)) as site:
        links = []
        for _ in range(4):
            links.append(await site.connect(LAST, window=4096))
            await asyncio.get_running_loop().sock_recv(links[-1], 1)
        await soon(lambda: site.ended("unread") >= 2)
        assert len(await rest_of(links[0])) < len(LARGE)
        assert len(await rest_of(links[3])) > len(LARGE)
        assert site.ended("unread") == 2


async def test_a_pipeline_that_is_not_read_is_not_answered_for_ever() -> None:
    """Nor held: the caller can't go on sending."""
    calls = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        await answering(bytes(1024))(scope, receive, send)

    async with serving(app) as site:
        link = await site.connect(window=4096)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        loop, sent, received, ahead = asyncio.get_running_loop(), 0, 0, 0

        async def send() -> None:
            nonlocal sent
            while sent < 64 * 1024 * 1024:
                await loop.sock_sendall(link, GET * 1000)
                sent += 1000 * len(GET)

        sending, still = asyncio.create_task(send()), 0
        while still < 2000 or not calls:  # rounds of the loop that both sides share
            still, ahead = (still + 1 if sent == ahead else 0), sent
            await asyncio.sleep(0)
        made = calls
        assert not sending.done()
        while received < 4 * made * 1024:  # whoever begins to read gets on
            received += len(await loop.sock_recv(link, 65536))
        assert calls > made
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_full_server_closes_the_idlest_of_the_largest_address() -> None:
    async with serving(answering(b""), max_connections=4) as site:
        others = await site.connect(GET, source="127.0.0.2")  # has waited for longest
        links = [await site.connect(GET) for _ in range(3)]
        for link in (others, *links):
            await answer(link, b"")
        await answer(links[0])  # so that the second is the idlest
        assert b" 200 " in await answer(await site.connect(source="127.0.0.3"))
        assert await rest_of(links[1]) == b""
        assert site.ended("full") == 1
        assert site.metric("fcn_connections") == 4
        for link in (others, links[0], links[2]):
            assert b" 200 " in await answer(link)


async def test_a_full_server_makes_room_for_a_hundred() -> None:
    """Silent ones, with half a head, with half a body: all of them wait for their callers."""
    async with serving(reading, max_connections=8) as site:
        for _ in range(4):
            for begun in (b"", GET[:10], POST + b"a"):
                await site.connect(begun)
        for _ in range(20):
            assert b" 200 " in await answer(await site.connect())
        assert site.metric("fcn_connections") == 8


async def test_with_all_requests_being_served_a_newcomer_is_refused() -> None:
    served = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await served.wait()
        await answering(b"")(scope, receive, send)

    async with serving(app, max_connections=2) as site:
        links = [await site.connect(GET) for _ in range(2)]
        await soon(lambda: len(site.http.server_state.tasks) == 2)
        data = await rest_of(await site.connect())
        assert data.startswith(b"HTTP/1.1 503 ")
        assert site.ended("refused") == 1
        served.set()
        for link in links:
            assert b" 200 " in await answer(link, b"")


async def test_stopping_waits_for_a_reader_who_has_stopped_no_longer_than_bounded() -> None:
    async with serving(answering(LARGE), reading_s=0.3) as site:
        link = await site.connect(GET, window=4096)
        await asyncio.get_running_loop().sock_recv(link, 1)
        site.http.should_exit = True
        await soon(lambda: site.metric("fcn_connections") == 0)
        assert site.ended("unread") == 1


async def test_stopping_tells_callers_that_the_connection_ends() -> None:
    served = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await served.wait()
        await answering(b"the last")(scope, receive, send)

    async with serving(app) as site:
        busy, silent = await site.connect(GET), await site.connect()
        await soon(lambda: len(site.http.server_state.tasks) == 1)
        site.http.should_exit = True
        assert await rest_of(silent) == b""
        served.set()
        data = await rest_of(busy)
        assert b"connection: close" in data.lower() and data.endswith(b"the last")
        assert site.ended("shutdown") == 2


@pytest.mark.parametrize("started", [False, True])
async def test_an_application_that_fails(started: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("on purpose")

    async with serving(app) as site:
        data = await rest_of(await site.connect(GET))
        assert data.startswith(b"HTTP/1.1 200 " if started else b"HTTP/1.1 500 ")
        assert data.endswith(b"half\r\n" if started else b"Internal Server Error")
        assert site.ended("failed" if started else "answered") == 1
    assert "on purpose" in caplog.text


@pytest.mark.parametrize(
    "message",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na",
        b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=lambda message: message.split()[1].decode(),
)
def test_who_sends_ahead_without_a_key_and_does_not_read(tmp_path: Path, message: bytes) -> None:
    """The whole server, in a process of its own, takes a few megabytes and no more."""
    write_model(tmp_path / "models")
    keys = tmp_path / "keys"
    keys.write_text("web 0123456789abcdef0123456789\n")
    with running(tmp_path / "models", api_keys_file=keys) as server, Link(server) as link:
        link.socket.settimeout(2.0)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 256 * 1024 * 1024:
                sent += link.socket.send(message * 1000)
        assert sent < 32 * 1024 * 1024
        assert server.rest.get("/livez").status_code == 200
        assert server.metric("fcn_connections") >= 1
        link.close()
        server.wait_for('fcn_connections_closed_total{reason="caller"}', 1)
        assert "Traceback" not in server.log()
