"""Tries what one gRPC connection can make the server hold: messages that are not complete, those
that are too large for their method, calls, and answers nobody reads."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import numpy as np
import pytest

from fcn_client.stubs import segmentation_pb2 as pb
from service.api.grpc.connections import LOOK_AROUND_S
from service.api.stubs import inference_pb2 as oip
from tests.drawing import png, street
from tests.http2 import Http2
from tests.serving import Server, running, write_slow_model
from tests.tiny_models import write_model
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems tell no sockets")

SEGMENT = "/segmentation.v1.Segmentation/Segment"
STREAM = "/segmentation.v1.Segmentation/SegmentStream"
INFER = "/inference.GRPCInferenceService/ModelInfer"
HEALTH = "/grpc.health.v1.Health"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
MIB = 1 << 20
UPLOADS = 'fcn_rejected_total{reason="uploads"}'
IMAGE = png(street(30, 50))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository: Path = tmp_path_factory.mktemp("models")
    write_model(repository)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    """Takes images of 1 MiB, and tensors of 120 MB."""
    with running(repository, max_image_bytes=MIB, max_uploads_bytes=16 * MIB) as server:
        yield server


@pytest.fixture(autouse=True)
def _keeps_serving(server: Server) -> Iterator[None]:
    yield
    assert server.stub.Segment(pb.SegmentRequest(image=IMAGE), timeout=30).body
    assert "Traceback" not in server.log()


@pytest.mark.parametrize(
    "path",
    [
        SEGMENT,
        STREAM,
        "/segmentation.v1.Segmentation/ListModels",
        "/inference.GRPCInferenceService/ServerLive",
        f"{HEALTH}/Check",
        f"{HEALTH}/Watch",
        REFLECTION,
    ],
)
def test_a_message_too_large_for_its_method_is_not_assembled(server: Server, path: str) -> None:
    """Its call ends while it is being sent, long before its announced end."""
    with closing(Http2(server)) as link:
        call = link.call(path)
        link.message(call, 100 * MIB, bytes(4 * MIB))
        link.wait(call)


def test_all_calls_of_a_connection_are_refused_together(server: Server) -> None:
    """It is not known of which of them the bytes are."""
    with closing(Http2(server)) as link:
        calls = [link.call("/segmentation.v1.Segmentation/ListModels") for _ in range(5)]
        for call in calls:
            link.message(call, 100 * MIB, bytes(MIB))
        for call in calls:
            link.wait(call)
    until(lambda: server.log().count("ListModels RESOURCE_EXHAUSTED") >= 5)


def test_incomplete_messages_share_one_budget(server: Server) -> None:
    """The connection that has sent the most gives way, and nobody else."""
    before = server.metric(UPLOADS)
    with closing(Http2(server)) as small, closing(Http2(server)) as large:
        calls = {link: link.call(INFER) for link in (small, large)}
        small.message(calls[small], 100 * MIB, bytes(2 * MIB))
        large.message(calls[large], 100 * MIB, bytes(30 * MIB))
        large.wait(calls[large])
        server.wait_for(UPLOADS, before + 1)
        small.read(0.2)
        assert calls[small] not in small.ended
        # Bodies over HTTP have room again, beside what is still being sent.
        reply = server.rest.post("/segment", content=IMAGE, headers={"Content-Type": "image/png"})
        assert reply.status_code == 200


def test_the_calls_of_a_lone_connection_share_it_too(server: Server) -> None:
    before = server.metric(UPLOADS)
    with closing(Http2(server)) as link:
        calls = [link.call(INFER) for _ in range(2)]
        for call in calls:
            link.message(call, 100 * MIB, bytes(12 * MIB))
        for call in calls:
            link.wait(call)
    server.wait_for(UPLOADS, before + 1)


def test_a_lone_message_always_fits(server: Server) -> None:
    """Even one above the budget: it is slower than nobody."""
    with closing(Http2(server)) as link:
        call = link.call(INFER)
        link.message(call, 30 * MIB, bytes(30 * MIB), end=True)
        link.wait(call)
    until(lambda: "ModelInfer INVALID_ARGUMENT" in server.log())


def test_a_message_that_is_read_between_two_looks_keeps_its_connection(tmp_path: Path) -> None:
    """Its answer comes later than the look that finds megabytes and no call that reads."""
    write_slow_model(tmp_path, turns=8000)
    shape = (1, 1000, 1000, 3)
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=shape)
    request = oip.ModelInferRequest(
        model_name="slow", inputs=[tensor], raw_input_contents=[b"\xff" * math.prod(shape)]
    ).SerializeToString()
    with running(tmp_path, deadline_ms=60_000) as server, closing(Http2(server)) as link:
        call = link.call(INFER)
        link.message(call, len(request), request[:1000])
        link.read(2 * LOOK_AROUND_S)
        link.more(call, request[1000:], end=True)
        until(lambda: "ModelInfer " in server.log(), server.log)
        assert "ModelInfer OK" in server.log()


def test_an_unfinished_message_is_given_up(repository: Path) -> None:
    """A stream may wait for its caller as long as it likes; a message that has begun may not."""
    with running(repository, upload_timeout_s=1) as server, closing(Http2(server)) as link:
        idle, begun = (link.call(STREAM) for _ in range(2))
        link.message(begun, MIB, bytes(200_000))
        link.wait(begun)
        assert idle in link.ended  # it is one connection


def test_a_watch_that_reads_nothing_does_not_hold_up_the_end(repository: Path) -> None:
    with running(repository, drain_s=600) as server, closing(Http2(server, window=0)) as link:
        call = link.call(f"{HEALTH}/Watch")
        link.message(call, 0, end=True)
        link.read(0.3)
        assert server.stop() == 0
        assert "does not read its answers" in server.log()
        assert "Traceback" not in server.log()


def test_answers_nobody_reads_do_not_hold_up_the_end(repository: Path) -> None:
    message = pb.SegmentRequest(image=IMAGE).SerializeToString()
    with running(repository, drain_s=600) as server, closing(Http2(server, window=0)) as link:
        calls = [link.call(SEGMENT) for _ in range(3)]
        for call in calls:
            link.message(call, len(message), message, end=True)
        until(lambda: server.log().count("Segment OK") == 3)
        assert server.stop() == 0
        assert "does not read its answers" in server.log()
        assert "Traceback" not in server.log()


@pytest.mark.parametrize("stream", [False, True], ids=["calls", "stream"])
def test_answers_nobody_reads_are_bounded_also_of_a_lone_connection(
    repository: Path, stream: bool
) -> None:
    """Those of a stream count before their turn, too."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 700, 3), np.uint8)
    request = pb.SegmentRequest(image=png(noise), output=pb.OUTPUT_OVERLAY)
    with (
        running(repository, max_image_bytes=MIB, max_uploads_bytes=2 * MIB) as server,
        closing(Http2(server, window=0)) as link,
    ):
        call = 0
        for n in range(6):
            one = pb.SegmentStreamRequest(id=str(n), request=request) if stream else request
            if not stream or not n:
                call = link.call(STREAM if stream else SEGMENT)
            message = one.SerializeToString()
            link.message(call, len(message), message, end=not stream)
        until(lambda: "does not read its answers" in server.log(), server.log)
        assert server.stop() == 0


def test_unknown_methods_are_counted_under_one_name(server: Server) -> None:
    series = 'fcn_requests_total{code="UNIMPLEMENTED",method="other",model="",transport="grpc"}'
    before = server.metric(series)
    for path in ("/made.up/Name", "/segmentation.v1.Segmentation/Nope"):
        with pytest.raises(grpc.RpcError) as caught:
            server.channel.unary_unary(path, bytes, bytes)(b"", timeout=30)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "there is no such method" in str(caught.value.details())
    server.settles(series, before + 2)


def test_a_key_is_judged_before_the_message(repository: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("web a-key-of-sixteen-characters\n")
    with running(repository, api_keys_file=keys) as server, closing(Http2(server)) as link:
        for path in (SEGMENT, INFER, "/inference.GRPCInferenceService/RepositoryIndex"):
            call = link.call(path)  # and nothing of its message
            link.wait(call)
        until(lambda: server.log().count("UNAUTHENTICATED") + server.log().count("DENIED") >= 3)


def test_a_stream_cut_off_while_idle_is_cancelled(server: Server) -> None:
    series = 'fcn_requests_total{{code="{}",method="SegmentStream",model="",transport="grpc"}}'
    before = server.metric(series.format("CANCELLED"))
    for _ in range(5):
        link = Http2(server)
        link.call(STREAM)
        link.read(0.1)
        link.close()
    server.settles(series.format("CANCELLED"), before + 5)


def test_headers_without_an_end_are_cut_off(server: Server) -> None:
    """gRPC's core keeps them, at several times their size, and begins no call."""
    with closing(Http2(server)) as link:
        assert link.headers_without_end(2000 * MIB) < 2000 * MIB
    with closing(Http2(server)) as link:
        call = link.call(SEGMENT)  # a connection that has had one
        link.message(call, len(IMAGE), IMAGE, end=True)
        assert link.headers_without_end(2000 * MIB) < 2000 * MIB
    with closing(Http2(server)) as link:
        link.call(INFER)  # which waits for a message, of up to 120 MB
        assert link.headers_without_end(2000 * MIB) < 2000 * MIB
    until(lambda: server.log().count("which sends what is no call") >= 3, server.log)
    png_type = {"Content-Type": "image/png"}  # what was sent counted as a message until then
    until(lambda: server.rest.post("/segment", content=IMAGE, headers=png_type).is_success)
