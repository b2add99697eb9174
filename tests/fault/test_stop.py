"""SIGTERM: unready, no new connections, the answers still owed, exit code 0."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from fcn_client.stubs import segmentation_pb2 as pb
from service.api.stubs.inference_pb2_grpc import GRPCInferenceServiceStub
from tests.contract.oip import Request
from tests.drawing import read_png
from tests.fault.conftest import INFLIGHT, lasting
from tests.serving import (
    ROOT,
    STOP_TIMEOUT_S,
    Server,
    command,
    environment,
    running,
    write_slow_model,
)
from tests.waiting import until

WHITE = 255
MINUTES = 2**32 // 255  # turns of the slow model that take far longer than any test waits


def over_rest(server: Server) -> bytes:
    reply = httpx.post(
        server.url + "/segment",
        content=lasting(WHITE),
        headers={"Content-Type": "image/png"},
        timeout=60,
    )
    assert reply.status_code == 200, reply.text
    return reply.content


def over_grpc(server: Server) -> bytes:
    body = server.stub.Segment(pb.SegmentRequest(image=lasting(WHITE)), timeout=60).body
    return bytes(body)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("send", [over_rest, over_grpc])
def test_requests_in_flight_are_answered(
    slow_repository: Path, send: Callable[[Server], bytes], number: signal.Signals
) -> None:
    with running(slow_repository) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(send, server)
        server.wait_for(INFLIGHT, 1)
        assert server.stop(number) == 0
        np.testing.assert_array_equal(read_png(answer.result()), np.zeros((8, 8)))
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/livez")


def test_unready_before_connections_are_refused(slow_repository: Path) -> None:
    with running(slow_repository, drain_delay_s=3) as server:
        health = health_pb2_grpc.HealthStub(server.channel)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.rest.get("/readyz").status_code != 200)
        ready = server.rest.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["type"] == "urn:fcn:problem:model-not-ready"
        assert "retry-after" in ready.headers
        assert server.rest.get("/livez").status_code == 200
        reply = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING
        # Who has not noticed yet is still served.
        late = server.rest.post(
            "/segment", content=lasting(0), headers={"Content-Type": "image/png"}
        )
        assert late.status_code == 200
        assert server.process.wait(20) == 0


def held_open(message: Any) -> Iterator[Any]:
    """A stream that is not closed: gRPC asks for the next message on a thread of its own."""
    yield message
    threading.Event().wait(60)


def watched(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())


def reflected(channel: grpc.Channel) -> Any:
    request = ServerReflectionRequest(list_services="")
    return ServerReflectionStub(channel).ServerReflectionInfo(held_open(request))


def inferred(channel: grpc.Channel) -> Any:
    request = Request(model="slow", shape=(1, 8, 8, 3), data=bytes(8 * 8 * 3)).message()
    return GRPCInferenceServiceStub(channel).ModelStreamInfer(held_open(request))


@pytest.mark.parametrize(
    ("open_stream", "code"),
    [(watched, "OK"), (reflected, "OK"), (inferred, "UNAVAILABLE")],
)
def test_a_stream_that_waits_for_its_caller_does_not_hold_up_the_drain(
    slow_repository: Path, open_stream: Callable[[grpc.Channel], Any], code: str
) -> None:
    with running(slow_repository, drain_s=10 * STOP_TIMEOUT_S) as server:
        call = open_stream(server.channel)
        next(call)
        assert server.stop() == 0
        assert "cut off" not in server.log()
        with contextlib.suppress(grpc.RpcError):
            list(call)
        assert call.code().name == code


def test_drain_is_bounded(tmp_path: Path) -> None:
    write_slow_model(tmp_path, turns=40_000)  # seconds, also on a fast machine
    with running(tmp_path, drain_s=0.2) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(over_rest, server)
        server.wait_for(INFLIGHT, 1)
        assert server.stop() == 0
        with pytest.raises((httpx.HTTPError, AssertionError)):
            answer.result()


def test_readers_that_stall_at_full_load_do_not_hold_up_the_end(slow_repository: Path) -> None:
    with running(slow_repository, drain_s=2) as server, ThreadPoolExecutor(4) as pool:
        stalled = []
        for _ in range(8):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(server.http_address)
            connection.settimeout(0.2)
            with contextlib.suppress(OSError):  # it takes no more
                for _ in range(500):
                    connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
            stalled.append(connection)
        for _ in range(16):
            pool.submit(over_rest, server)
        server.wait_for(INFLIGHT, 1)
        assert server.stop() == 0  # within STOP_TIMEOUT_S
        for connection in stalled:
            connection.close()


def test_second_signal_exits_at_once(slow_repository: Path) -> None:
    with running(slow_repository, drain_delay_s=60) as server:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.rest.get("/readyz").status_code != 200)
        # Within STOP_TIMEOUT_S, which is half of the delay.
        assert server.stop() == 128 + signal.SIGTERM


def test_drain_does_not_wait_for_an_endless_inference(tmp_path: Path) -> None:
    write_slow_model(tmp_path, turns=MINUTES)
    with running(tmp_path, drain_s=0.2) as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(over_rest, server)
        server.wait_for(INFLIGHT, 1)
        assert server.stop() == 0  # within STOP_TIMEOUT_S
        with pytest.raises((httpx.HTTPError, AssertionError)):
            answer.result()


def test_signal_while_loading(tmp_path: Path) -> None:
    """Alive but not ready while the model warms up, for minutes; a signal ends it at once."""
    write_slow_model(tmp_path, turns_at_least=MINUTES)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with subprocess.Popen(
        command(model_repository=tmp_path, http_port=port, grpc_port=0),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            until(lambda: is_alive(port))
            ready = httpx.get(f"http://127.0.0.1:{port}/readyz")
            early = httpx.post(f"http://127.0.0.1:{port}/segment", content=lasting(0))
            process.terminate()
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (ready.status_code, early.status_code) == (503, 503)
    assert early.json()["type"] == "urn:fcn:problem:model-not-ready"
    assert process.returncode == 0, err
    assert (out, "Traceback" in err) == ("", False)


def is_alive(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
    except httpx.TransportError:
        return False
