"""The Python client and a server that is busy, or no longer wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcn_client import AsyncFcnClient, FcnClient, RetryPolicy
from tests.fault.conftest import INFLIGHT, lasting
from tests.serving import Server, running


@pytest.fixture(scope="module")
def server(slow_repository: Path) -> Iterator[Server]:
    with running(slow_repository, max_inflight=2) as server:
        yield server


@pytest.fixture(params=["rest", "grpc"])
def url(server: Server, request: pytest.FixtureRequest) -> str:
    return server.url if request.param == "rest" else f"grpc://{server.target}"


def test_a_full_server_is_asked_again(url: str) -> None:
    """Three at a time where there is room for two: the third comes back when it is told to."""
    with FcnClient(url, retry=RetryPolicy(max_attempts=100)) as client:
        outcomes = list(client.segment_many([lasting(200)] * 3, in_flight=3))
    assert [outcome.ok for outcome in outcomes] == [True] * 3
    first, second, third = sorted(outcome.unwrap().attempts for outcome in outcomes)
    assert (first, second) == (1, 1) and third > 1


async def test_a_cancelled_call_is_cancelled_on_the_server(server: Server, url: str) -> None:
    series = 'fcn_rejected_total{reason="cancelled"}'
    before = server.metric(series)
    async with AsyncFcnClient(url) as client:
        call = asyncio.create_task(client.segment(lasting(255)))
        await asyncio.to_thread(server.wait_for, INFLIGHT, 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(server.wait_for, series, before + 1)
