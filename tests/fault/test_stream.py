"""SegmentStream when answers take long: deadlines, cancellation, overload, shutdown."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc
from tests.fault.conftest import INFLIGHT, PATIENT, lasting
from tests.serving import Server, running

WINDOW = 3
CANCELLED = 'fcn_rejected_total{reason="cancelled"}'


@pytest.fixture(scope="module")
def server(slow_repository: Path) -> Iterator[Server]:
    with running(
        slow_repository, stream_window=WINDOW, max_inflight=4, grpc_compression="gzip", **PATIENT
    ) as server:
        yield server


def item(id: str, red: int, **fields: Any) -> pb.SegmentStreamRequest:
    """About 3 ms of work for each step of `red`."""
    return pb.SegmentStreamRequest(id=id, request=pb.SegmentRequest(image=lasting(red)), **fields)


def held_open(*messages: pb.SegmentStreamRequest) -> Iterator[pb.SegmentStreamRequest]:
    """A stream that is not closed: gRPC asks for the next message on a thread of its own."""
    yield from messages
    threading.Event().wait(60)


def test_half_closed(server: Server) -> None:
    """All is sent and the caller's side closed long before the answers are ready."""
    seen = list(server.stub.SegmentStream(iter([item("a", 30), item("b", 30)]), timeout=60))
    assert {response.id for response in seen} == {"a", "b"}
    assert all(response.HasField("response") for response in seen)


def test_cancellation_reaches_the_batcher(server: Server) -> None:
    before = server.metric(CANCELLED)
    call = server.stub.SegmentStream(held_open(*(item(str(n), 200) for n in range(9))), timeout=60)
    server.wait_for(INFLIGHT, WINDOW)
    call.cancel()
    # One of them may have been answered just before.
    server.wait_for(CANCELLED, before + 1)
    server.settles(INFLIGHT, 0)
    assert server.metric(CANCELLED) <= before + WINDOW, "no more than the window was read"


def test_the_streams_deadline_reaches_the_batcher(server: Server) -> None:
    call = server.stub.SegmentStream(held_open(item("a", 255), item("b", 255)), timeout=0.3)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    server.settles(INFLIGHT, 0)


def test_an_items_deadline_is_its_own(server: Server) -> None:
    messages = [item("late", 255, deadline_ms=100), item("b", 20, deadline_ms=30_000)]
    seen = {r.id: r for r in server.stub.SegmentStream(iter(messages), timeout=60)}
    assert seen["late"].error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert seen["late"].error.type == "urn:fcn:problem:deadline-exceeded"
    assert seen["b"].HasField("response")


def test_overload_is_an_item_error(server: Server) -> None:
    """Two streams ask for more than the server takes on; both go on."""
    first = server.stub.SegmentStream(held_open(*(item(str(n), 200) for n in range(3))), timeout=60)
    server.wait_for(INFLIGHT, 3)
    second = server.stub.SegmentStream(
        iter([item("x", 60), item("y", 60), item("z", 60)]), timeout=60
    )
    seen = list(second)
    errors = [response.error for response in seen if response.HasField("error")]
    assert len(seen) == 3 and errors
    for error in errors:
        assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert error.type == "urn:fcn:problem:overloaded"
        assert error.retry_after_ms >= 1000
    assert all(next(first).HasField("response") for _ in range(3))
    first.cancel()


def test_answers_are_compressed(server: Server) -> None:
    with _counting(server.target) as (target, count):
        with grpc.insecure_channel(target) as channel:
            stub = pb_grpc.SegmentationStub(channel)
            replies = [stub.ListModels(pb.ListModelsRequest(), timeout=30) for _ in range(9)]
        assert 0 < count[0] < 0.9 * sum(reply.ByteSize() for reply in replies)


def test_a_server_that_stops_answers_what_it_read(slow_repository: Path) -> None:
    with running(slow_repository, stream_window=2, **PATIENT) as server:
        waiting = server.stub.SegmentStream(held_open(), timeout=60)
        closed = server.stub.SegmentStream(iter([item("c", 100)]), timeout=60)
        server.wait_for(INFLIGHT, 1)
        half_way = server.stub.SegmentStream(
            held_open(*(item(id, 60) for id in ("a", "b", "unread"))), timeout=60
        )
        server.wait_for(INFLIGHT, 3)
        server.process.send_signal(signal.SIGTERM)
        assert [response.id for response in closed] == ["c"]
        for call, ids in ((half_way, {"a", "b"}), (waiting, set())):
            assert {next(call).id for _ in ids} == ids
            with pytest.raises(grpc.RpcError) as caught:
                next(call)
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert "without an answer" in (caught.value.details() or "")
            assert dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"]
        assert server.process.wait(20) == 0


@contextmanager
def _counting(target: str) -> Iterator[tuple[str, list[int]]]:
    """A way to `target` for one connection, and how many bytes came back on it."""
    count = [0]
    host, port = target.rsplit(":", 1)

    def forward(source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                count[0] += len(chunk) if counts else 0
                sink.sendall(chunk)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        near = listener.accept()[0]
        with near, socket.create_connection((host, int(port))) as far:
            back = threading.Thread(target=forward, args=(far, near, True))
            back.start()
            forward(near, far, False)
            back.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", count
        thread.join(10)
