"""Deadlines, callers who leave, and more work than fits."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from fcn_client.stubs import segmentation_pb2 as pb
from tests.fault.conftest import INFLIGHT, lasting
from tests.serving import Server, running
from tests.waiting import until

CANCELLED = 'fcn_rejected_total{reason="cancelled"}'
HEADERS = {"Content-Type": "image/png"}
LONG, SHORT = lasting(255), lasting(0)


@pytest.fixture(scope="module")
def server(slow_repository: Path) -> Iterator[Server]:
    with running(slow_repository, max_inflight=1) as server:
        yield server


@pytest.fixture(autouse=True)
def _serves_before_and_after(server: Server) -> Iterator[None]:
    """Each test starts and ends with an idle server that answers."""
    _wait_until_answered(server)
    yield
    _wait_until_answered(server)


def _wait_until_answered(server: Server) -> None:
    def answered() -> bool:
        reply = server.rest.post("/segment", content=SHORT, headers=HEADERS)
        return bool(reply.status_code == 200)

    until(answered, server.log)


def test_deadline(server: Server) -> None:
    late = server.rest.post("/segment?deadline_ms=150", content=LONG, headers=HEADERS)
    assert late.status_code == 504, late.text
    assert late.json()["type"] == "urn:fcn:problem:deadline-exceeded"
    _wait_until_answered(server)
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.Segment(pb.SegmentRequest(image=LONG), timeout=0.15)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_the_servers_own_deadline(slow_repository: Path) -> None:
    with running(slow_repository, deadline_ms=150) as strict:
        late = strict.rest.post("/segment", content=LONG, headers=HEADERS)
        assert late.status_code == 504
        assert strict.metric('fcn_rejected_total{reason="deadline"}') == 1
        with pytest.raises(grpc.RpcError) as caught:
            strict.stub.Segment(pb.SegmentRequest(image=LONG))
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "allow more time" in (caught.value.details() or "")


def test_rest_caller_who_leaves(server: Server) -> None:
    before = server.metric(CANCELLED)
    with socket.create_connection(server.http_address, timeout=10) as link:
        link.sendall(
            b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(LONG), LONG)
        )
        server.wait_for(INFLIGHT, 1)
    server.wait_for(CANCELLED, before + 1)
    gone = 'fcn_requests_total{code="499",method="Segment",model="slow",transport="rest"}'
    server.wait_for(gone, 1)


def test_rest_caller_who_leaves_while_uploading(server: Server) -> None:
    gone = 'fcn_requests_total{code="499",method="Segment",model="slow",transport="rest"}'
    before = server.metric(gone)
    with socket.create_connection(server.http_address, timeout=10) as link:
        link.sendall(
            b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 1000\r\n\r\nabc"
        )
    server.wait_for(gone, before + 1)
    assert "Traceback" not in server.log()


def test_grpc_caller_who_leaves(server: Server) -> None:
    before = server.metric(CANCELLED)
    call = server.stub.Segment.future(pb.SegmentRequest(image=LONG))
    server.wait_for(INFLIGHT, 1)
    call.cancel()
    server.wait_for(CANCELLED, before + 1)
    gone = 'fcn_requests_total{code="CANCELLED",method="Segment",model="slow",transport="grpc"}'
    server.wait_for(gone, 1)


def test_more_than_fits(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            httpx.post, server.url + "/segment", content=LONG, headers=HEADERS, timeout=60
        )
        server.wait_for(INFLIGHT, 1)
        refused = server.rest.post("/segment", content=SHORT, headers=HEADERS)
        assert refused.status_code == 429
        assert refused.json()["type"] == "urn:fcn:problem:overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(grpc.RpcError) as caught:
            server.stub.Segment(pb.SegmentRequest(image=SHORT), timeout=30)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        pushback = dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"]
        assert int(pushback) >= 1000
        # Probes and metrics are not work: they answer however busy the server is.
        assert server.rest.get("/readyz").status_code == 200
        assert first.result().status_code == 200
