"""Callers who close their side of a connection and wait, and those who are gone: FIN says both."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.conftest import INFLIGHT, PATIENT, lasting
from tests.link import Link
from tests.serving import Server, running

LONG = lasting(255)
GONE = 'fcn_requests_total{code="499",method="Segment",model="slow",transport="rest"}'
MESSAGE = (
    b"POST /segment?output=json HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    b"Content-Length: %d\r\n\r\n" % len(LONG)
) + LONG


@pytest.fixture(scope="module")
def server(slow_repository: Path) -> Iterator[Server]:
    with running(slow_repository, **PATIENT) as server:
        yield server


@pytest.mark.parametrize("requests", [1, 2])
def test_who_waits_is_answered_however_long_it_takes(server: Server, requests: int) -> None:
    """So are those of several that wait for the one before."""
    links = [Link(server) for _ in range(3)]
    for link in links:
        link.send(MESSAGE * requests)
        link.socket.shutdown(socket.SHUT_WR)
    for link in links:
        for _ in range(requests):
            status, headers, _ = link.answer()
            assert (status, headers["content-type"]) == (200, "application/json")
        assert link.is_over()
        link.close()


def test_who_is_gone_is_noticed_in_the_queue(server: Server) -> None:
    before = server.metric(GONE)
    with Link(server) as waits:
        waits.send(MESSAGE * 2)
        for _ in range(4):
            with Link(server) as leaves:
                leaves.send(MESSAGE)
                server.wait_for(INFLIGHT, 1)
        server.wait_for(GONE, before + 3)
        assert [waits.answer()[0] for _ in range(2)] == [200, 200]
    server.settles(INFLIGHT, 0)
    assert "Traceback" not in server.log()
