"""The bounds on connections hold over TLS: handshakes count and end, and so do unread answers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import AbstractAsyncContextManager

import pytest

from service.tls import Certificates, Files
from tests.authority import Authority
from tests.contract.test_connection_bounds import (
    GET,
    LARGE,
    App,
    Site,
    answering,
    reading,
    rest_of,
    serving,
)
from tests.waiting import soon


def secured(authority: Authority, app: App, **bounds: float) -> AbstractAsyncContextManager[Site]:
    return serving(app, Certificates(Files(*authority.issue())), **bounds)


async def opened(
    site: Site, authority: Authority
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        *site.address, ssl=authority.context(), server_hostname="localhost", limit=1024
    )


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "begun"])
async def test_a_handshake_that_does_not_come_ends(authority: Authority, begun: bytes) -> None:
    async with secured(authority, answering(b""), head_s=0.3) as site:
        link = await site.connect(begun)
        await soon(lambda: site.metric("fcn_connections") == 1)
        assert await rest_of(link) == b""
        assert site.ended("tls") == 1
        assert site.metric("fcn_connections") == 0


async def test_one_that_comes_byte_by_byte_ends_in_the_same_time(authority: Authority) -> None:
    async with secured(authority, answering(b""), head_s=0.3) as site:
        link = await site.connect(b"\x16\x03\x01\x02\x00")

        async def trickle() -> None:
            while True:
                await asyncio.get_running_loop().sock_sendall(link, b"\x01")
                await asyncio.sleep(0.05)

        trickling = asyncio.create_task(trickle())
        await soon(lambda: site.ended("tls") == 1)
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)


async def test_silent_handshakes_make_room_for_others(authority: Authority) -> None:
    async with secured(authority, answering(b"x"), max_connections=8) as site:
        for _ in range(20):
            await site.connect()
        await soon(lambda: site.ended("full") == 12)
        reader, writer = await opened(site, authority)
        writer.write(GET)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        assert site.metric("fcn_connections") <= 8
        writer.close()


async def test_a_record_that_does_not_come_leaves_the_connection_idle(
    authority: Authority,
) -> None:
    async with secured(authority, answering(b"x"), idle_s=0.5) as site:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        link, loop = await site.connect(), asyncio.get_running_loop()
        shaken = False
        while not shaken:
            try:
                client.do_handshake()
                shaken = True
            except ssl.SSLWantReadError:
                await loop.sock_sendall(link, outgoing.read())
                incoming.write(await loop.sock_recv(link, 65536))
        await loop.sock_sendall(link, outgoing.read())
        client.write(GET)
        for byte in outgoing.read()[:-1]:
            try:
                await loop.sock_sendall(link, bytes([byte]))
            except ConnectionError:
                break
            await asyncio.sleep(0.05)
        await soon(lambda: site.ended("idle") == 1)


async def test_answers_that_nobody_reads_are_bounded(authority: Authority) -> None:
    async with secured(authority, answering(LARGE), reading_s=1.0) as site:
        _, writer = await opened(site, authority)
        link = writer.get_extra_info("socket")
        assert isinstance(link.fileno(), int)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(8):
            writer.write(GET)
        await soon(lambda: site.ended("unread") == 1)
        writer.transport.abort()


async def test_a_large_body_and_answer_come_whole(authority: Authority) -> None:
    async with secured(authority, reading) as site:
        reader, writer = await opened(site, authority)
        body = bytes(range(256)) * 20_000
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(len(body)) == body
        # The end of TLS is that of the connection, which an answer in work does not outlive.
        writer.close()
        await soon(lambda: site.ended("caller") == 1)


async def test_what_is_no_request_is_answered_over_tls(authority: Authority) -> None:
    async with secured(authority, answering(b"")) as site:
        reader, writer = await opened(site, authority)
        writer.write(b"\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"strict-transport-security" in answer
        writer.close()


async def test_a_connection_in_its_handshake_does_not_keep_the_server_from_ending(
    authority: Authority,
) -> None:
    async with secured(authority, answering(b"")) as site:
        link = await site.connect(b"\x16\x03\x01")
        await soon(lambda: site.metric("fcn_connections") == 1)
        site.http.should_exit = True
        assert await rest_of(link) == b""
        assert isinstance(link, socket.socket)
        assert site.ended("shutdown") == 1
