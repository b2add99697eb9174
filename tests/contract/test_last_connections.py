"""At its end the server answers those who have connected, also whom it has not accepted yet."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from service import listening
from service.tls import Certificates, Files
from tests.authority import Authority
from tests.contract.test_connection_bounds import GET, Site, answer, answering, serving

COUNT = 20


def connected(site: Site, data: bytes = b"") -> socket.socket:
    """Connects and sends while the event loop, and so the server, waits."""
    link = socket.create_connection(site.address)
    link.sendall(data)
    link.setblocking(False)
    return link


async def all_of(link: socket.socket) -> bytes:
    """Reads until the server ends the connection. Raises: ConnectionResetError."""
    data = b""
    while part := await asyncio.get_running_loop().sock_recv(link, 65536):
        data += part
    link.close()
    return data


async def test_who_connected_last_is_answered() -> None:
    async with serving(answering(b"here")) as site:
        links = [connected(site, GET) for _ in range(COUNT)]
        await site.http.shutdown(site.listeners)
        for link in links:
            said = await all_of(link)
            assert said.startswith(b"HTTP/1.1 200 ") and said.endswith(b"here")
            assert b"connection: close" in said.lower()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(site.address)


async def test_a_last_request_of_an_open_connection_is_answered() -> None:
    async with serving(answering(b"here")) as site:
        link = await site.connect()
        assert b"connection: close" not in (await answer(link)).lower()
        link.sendall(GET)
        await site.http.shutdown(site.listeners)
        assert b"connection: close" in (await all_of(link)).lower()


async def test_who_connects_last_and_says_nothing_does_not_hold_up_the_end() -> None:
    async with serving(answering(b"")) as site:
        link = connected(site)
        await site.http.shutdown(site.listeners)
        assert await all_of(link) == b""
        assert site.ended("shutdown") == 1


async def test_who_connected_last_is_answered_over_tls(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "UNHEARD_S", 2.0)  # for a handshake on a busy machine

    async def ask(link: socket.socket) -> bytes:
        context: Any = authority.context()
        reader, writer = await asyncio.open_connection(
            sock=link, ssl=context, server_hostname="localhost"
        )
        writer.write(GET)
        said = await reader.read()
        writer.close()
        return said

    async with serving(answering(b"here"), Certificates(Files(*authority.issue()))) as site:
        asking = asyncio.create_task(ask(connected(site)))
        await site.http.shutdown(site.listeners)
        assert (await asking).endswith(b"here")
