"""Bodies that come slowly, and bodies that nobody wants: over real sockets."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from fcn_client.stubs import segmentation_pb2 as pb
from tests.fault.conftest import INFLIGHT, lasting
from tests.link import Link
from tests.serving import Server, running

SHORT, LONG = lasting(0), lasting(255)
HEAD = b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
TIMEOUT_S = 1.0
ANNOUNCED = [b"Content-Length: 1000\r\n\r\n", b"Content-Length: 20000000\r\n\r\n"]
"""A body that is waited for when it is refused, and one that costs the connection."""
UPLOADS = 'fcn_rejected_total{reason="uploads"}'


@pytest.fixture(scope="module")
def server(slow_repository: Path) -> Iterator[Server]:
    with running(
        slow_repository, max_inflight=1, max_uploads=2, upload_timeout_s=TIMEOUT_S
    ) as server:
        yield server


@pytest.fixture
def busy(server: Server) -> Iterator[None]:
    """While the one request that fits is answered."""
    with ThreadPoolExecutor(1) as pool:
        headers = {"Content-Type": "image/png"}
        url = server.url + "/segment"
        first = pool.submit(httpx.post, url, content=LONG, headers=headers, timeout=60)
        server.wait_for(INFLIGHT, 1)
        yield
        assert first.result().status_code == 200


def post(link: Link, body: bytes = SHORT) -> int:
    link.send(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
    return link.answer()[0]


def test_without_room_the_answer_comes_before_the_upload(server: Server, busy: None) -> None:
    with Link(server) as link:
        link.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(SHORT))
        status, headers, body = link.answer()
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        assert json.loads(body)["type"] == "urn:fcn:problem:overloaded"
        assert "connection" not in headers
        # The unwanted body is read past, and the connection is as good as new.
        link.send(SHORT)
        assert post(link) == 429


@pytest.mark.parametrize(
    "announced", [b"Content-Length: 20000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"]
)
def test_a_large_or_endless_body_costs_the_connection(
    server: Server, busy: None, announced: bytes
) -> None:
    with Link(server) as link:
        link.send(HEAD + announced)
        status, headers, _ = link.answer()
        assert status == 429
        assert headers["connection"] == "close"
        assert link.closed()


def test_a_client_that_asks_before_it_sends_is_told_not_to(server: Server, busy: None) -> None:
    with Link(server) as link:
        link.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 500000\r\n\r\n")
        assert link.answer()[0] == 429


def test_an_unsent_body_does_not_hold_what_others_need(server: Server) -> None:
    with Link(server) as silent, Link(server) as link:
        silent.send(HEAD + b"Content-Length: 1000\r\n\r\nabc")
        assert post(link) == 200


@pytest.mark.parametrize("announced", ANNOUNCED)
def test_a_slow_upload_is_answered_408(server: Server, announced: bytes) -> None:
    with Link(server) as link:
        link.send(HEAD + announced + b"abc")
        status, headers, body = link.answer()
        assert status == 408
        assert json.loads(body)["type"] == "urn:fcn:problem:upload-too-slow"
        assert "send a smaller image" in json.loads(body)["detail"]
        assert headers["connection"] == "close"
        assert link.closed()


@pytest.mark.parametrize("announced", ANNOUNCED)
def test_too_many_uploads_at_once(server: Server, announced: bytes) -> None:
    with Link(server) as first, Link(server) as second, Link(server) as third:
        before = server.metric(UPLOADS)
        for link in (first, second):
            link.send(HEAD + b"Expect: 100-continue\r\n" + announced)
            assert b" 100 " in link.file.readline()  # it is being read
            link.file.readline()
            link.send(b"abc")
        head, rest = SHORT[:10], SHORT[10:]
        third.send(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(SHORT), head))
        status, headers, _ = third.answer()
        assert status == 429
        assert headers["retry-after"] == "1"
        third.send(rest)  # is not needed any more, and the connection is as good as new
        server.settles(UPLOADS, before + 1)
        assert first.answer()[0] == second.answer()[0] == 408
        assert post(third) == 200


def test_grpc_without_room_does_not_wait_for_the_message(server: Server, busy: None) -> None:
    sends, was_sent = threading.Event(), threading.Event()

    def silence() -> Iterator[object]:
        sends.wait(20)
        was_sent.set()
        yield object()

    call = server.channel.stream_unary(
        "/segmentation.v1.Segmentation/Segment",
        request_serializer=lambda _: SHORT,
        response_deserializer=pb.SegmentResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as caught:
        call(silence(), timeout=30)
    assert not was_sent.is_set()
    sends.set()
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(caught.value.trailing_metadata() or ())
    assert int(trailers["grpc-retry-pushback-ms"]) >= 1000
    assert trailers["x-request-id"]


def test_grpc_message_that_does_not_come(server: Server) -> None:
    call = server.channel.stream_unary(
        "/segmentation.v1.Segmentation/Segment",
        request_serializer=lambda _: SHORT,
        response_deserializer=pb.SegmentResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as caught:
        call(iter(lambda: time.sleep(TIMEOUT_S + 1), object()), timeout=30)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "send a smaller image" in (caught.value.details() or "")
    with pytest.raises(grpc.RpcError) as caught:
        call(iter(()), timeout=30)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "send one SegmentRequest" in (caught.value.details() or "")
