"""gRPC calls that another program received are answered as over a port of our own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from service.api.grpc.relayed import Method, Relay, add_services, methods
from service.api.stubs import inference_pb2 as oip
from service.api.stubs import segmentation_pb2 as pb
from service.assembly import Assembly
from service.scrapes import joined
from service.settings import load_settings
from tests.drawing import png, read_png, street
from tests.tiny_models import expected_label_map, write_model

IMAGE = street()
METHODS = {method.name: method for method in methods()}


class Heard:
    """A caller that keeps what it is told."""

    def __init__(self, metadata: Sequence[tuple[str, str | bytes]] = ()) -> None:
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: dict[str, str | bytes] = {}
        self._metadata = metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:5000"

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return self._metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str | bytes]]) -> None:
        self.trailing = dict(metadata)


@pytest.fixture
async def assembly(tmp_path: Path) -> AsyncIterator[Assembly]:
    write_model(tmp_path, "tiny", 1)
    settings = load_settings(
        {"model_repository": tmp_path, "decode": "threads", "intra_op_threads": 1, "instances": 1}
    )
    made = Assembly(settings)
    await made.segmenter.start()
    made.grpc.set_serving(True)
    yield made
    await made.aclose()


@pytest.fixture
def relay(assembly: Assembly) -> Relay:
    return Relay(assembly.grpc.handlers())


def request(image: bytes = png(IMAGE), **more: Any) -> bytes:
    return pb.SegmentRequest(image=image, **more).SerializeToString()


async def test_an_image(relay: Relay) -> None:
    caller = Heard([("x-request-id", "mine")])
    raw = await relay.unary(METHODS["Segment"], request(), caller)
    answer = pb.SegmentResponse.FromString(raw.SerializeToString())
    np.testing.assert_array_equal(read_png(answer.body), expected_label_map(IMAGE))
    assert (caller.code, caller.trailing) == (None, {"x-request-id": "mine"})


async def test_models_and_health(relay: Relay) -> None:
    raw = await relay.unary(METHODS["ListModels"], b"", Heard())
    assert [model.name for model in pb.ListModelsResponse.FromString(raw).models] == ["tiny"]
    raw = await relay.unary(METHODS["ServerReady"], b"", Heard())
    assert oip.ServerReadyResponse.FromString(raw).ready
    raw = await relay.unary(METHODS["Check"], b"", Heard())
    answer = health_pb2.HealthCheckResponse.FromString(raw)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_an_error_has_its_status_details(relay: Relay) -> None:
    caller = Heard()
    raw = await relay.unary(METHODS["Segment"], request(version="9"), caller)
    assert (raw, caller.code) == (b"", grpc.StatusCode.NOT_FOUND)
    assert "'9'" in caller.details
    status = status_pb2.Status.FromString(caller.trailing["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info) and info.reason == "unknown-version"


async def test_a_message_that_is_none_and_a_damaged_image(relay: Relay) -> None:
    for message, words in ((b"\xff\xff", "message"), (request(png(IMAGE)[:100]), "damaged")):
        caller = Heard()
        await relay.unary(METHODS["Segment"], message, caller)
        assert caller.code is grpc.StatusCode.INVALID_ARGUMENT and words in caller.details


async def items(*messages: pb.SegmentStreamRequest) -> AsyncIterator[bytes]:
    for message in messages:
        yield message.SerializeToString()


async def test_a_stream(relay: Relay) -> None:
    wanted = pb.SegmentRequest(image=png(IMAGE))
    sent = (pb.SegmentStreamRequest(id=str(n), request=wanted) for n in range(5))
    found = [
        pb.SegmentStreamResponse.FromString(raw)
        async for raw in relay.stream(METHODS["SegmentStream"], items(*sent), Heard())
    ]
    assert {answer.id for answer in found} == {"0", "1", "2", "3", "4"}
    assert len({answer.response.body for answer in found}) == 1


async def test_a_stream_that_ends_with_an_error(relay: Relay) -> None:
    async def garbage() -> AsyncIterator[bytes]:
        yield b"\xff\xff"

    caller = Heard()
    with pytest.raises(RuntimeError, match="message"):
        await anext(relay.stream(METHODS["SegmentStream"], garbage(), caller))
    assert caller.code is grpc.StatusCode.INVALID_ARGUMENT and "message" in caller.details


async def test_who_leaves_a_stream_ends_it(relay: Relay) -> None:
    watching = relay.stream(METHODS["Watch"], items(), Heard())
    with pytest.raises(RuntimeError):  # it has no message
        await anext(watching)
    asked = relay.stream(METHODS["Watch"], _empty(), Heard())
    answer = health_pb2.HealthCheckResponse.FromString(await anext(asked))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await asked.aclose()  # type: ignore[attr-defined]  # it is a generator


async def _empty() -> AsyncIterator[bytes]:
    yield b""


def test_every_method_is_added_as_it_comes() -> None:
    added: dict[str, Any] = {}

    class Server:
        def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
            (handler,) = handlers
            added.update(handler._method_handlers)

    add_services(None, Server())
    assert set(added) == {method.path for method in METHODS.values()}
    for method in METHODS.values():
        found = added[method.path]
        assert (found.request_streaming, found.response_streaming) == method[2:]
        assert found.request_deserializer is found.response_serializer is None
    assert METHODS["Segment"] == Method(
        "/segmentation.v1.Segmentation/Segment", "Segment", False, False
    )


async def test_metrics_of_several_keep_their_names(tmp_path: Path) -> None:
    """The page is made by whoever knows the others, and each series says whose it is."""
    write_model(tmp_path, "tiny", 1)

    async def scrape() -> bytes:
        page = made.telemetry.scrape().decode()
        return joined({"a": page, "b": page}, "replica")

    settings = load_settings({"model_repository": tmp_path, "decode": "threads"})
    made = Assembly(settings, scrape=scrape)
    transport = httpx.ASGITransport(made.rest)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        page = (await client.get("/metrics")).text
    for name in "ab":
        assert f'fcn_latency_target_seconds{{replica="{name}"}} 0.175' in page
    assert page.count("# TYPE fcn_requests_total counter") == 1
    await made.aclose()
