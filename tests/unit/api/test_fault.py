"""Faults of our own and limits by key: told alike by every transport, counted and logged once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status

from service.api.stubs import inference_pb2 as oip
from service.api.stubs import inference_pb2_grpc as oip_stubs
from service.api.stubs import segmentation_pb2 as pb
from service.api.stubs import segmentation_pb2_grpc as stubs
from service.api.transports import build
from service.config import ApiConfig
from service.core.segmenter import Segmenter
from service.core.types import ModelState, ModelStatus, VersionStatus
from service.errors import Overloaded
from service.telemetry import Telemetry
from tests.tiny_models import contract

TOLD = "the server failed: try again, and report the request id if it recurs"


class Broken:
    """A segmenter with a fault: its check passes, and then it fails in a way nobody thought of."""

    def status(self, name: str, version: str | None) -> tuple[ModelStatus, VersionStatus]:
        found = VersionStatus(
            "1",
            ModelState.READY,
            contract("tiny"),
            "cpu",
            Path("model.onnx"),
            "onnxruntime",
            "fp32",
        )
        return ModelStatus("tiny", "1", (found,)), found

    def check(self, options: object, client: object) -> None: ...

    def check_any(self, deadline_s: float | None, client: object) -> None: ...

    def metric_label(self, name: str | None) -> str:
        return name or "tiny"

    async def segment(self, image: object, options: object, client: object) -> Any:
        raise KeyError("a secret of ours")


class Parts:
    """Both servers' parts around the broken segmenter."""

    def __init__(self, keys: Any = None) -> None:
        self.telemetry, broken = Telemetry(0.175), cast(Segmenter, Broken())
        self.rest, self.grpc = build(
            broken, self.telemetry, ApiConfig(), keys=keys, ready=lambda: True
        )

    def counted(self, code: str, method: str, transport: str) -> bool:
        labels = f'code="{code}",method="{method}",model="tiny",transport="{transport}"'
        return f"fcn_requests_total{{{labels}}} 1.0" in self.telemetry.scrape().decode()


@pytest.fixture
def traceback(caplog: pytest.LogCaptureFixture) -> Any:
    """Says, after the request, that there was one line with the traceback, and one for the call."""

    def check(request_id: str) -> None:
        (fault,) = (record for record in caplog.records if record.name == "fcn.call")
        assert request_id in fault.getMessage()
        assert fault.exc_info and "a secret of ours" in str(fault.exc_info[1])
        assert len([record for record in caplog.records if record.name == "fcn.request"]) == 1

    with caplog.at_level(logging.INFO):
        yield check


@pytest.mark.parametrize(
    ("path", "body", "method"),
    [
        ("/segment", b"an image", "Segment"),
        ("/v2/models/tiny/infer", b"a file", "ModelInfer"),
    ],
)
async def test_rest(path: str, body: bytes, method: str, traceback: Any) -> None:
    parts = Parts()
    transport = httpx.ASGITransport(parts.rest)
    headers = {"Inference-Header-Content-Length": "0", "X-Request-ID": "job-7"}
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        reply = await client.post(path, content=body, headers=headers)
    assert (reply.status_code, reply.headers["x-request-id"]) == (500, "job-7")
    if path == "/segment":
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json() == {
            "type": "urn:fcn:problem:internal-error",
            "title": "Internal error",
            "status": 500,
            "detail": TOLD,
            "instance": "urn:fcn:request:job-7",
            "request_id": "job-7",
        }
    else:
        assert reply.json() == {"error": TOLD}
    assert parts.counted("500", method, "rest")
    traceback("job-7")


async def refused(parts: Parts, method: str) -> Any:
    """The error of one image over gRPC."""
    target = f"127.0.0.1:{parts.grpc.bind('127.0.0.1:0')}"
    await parts.grpc.start()
    try:
        async with aio.insecure_channel(target) as channel:
            call: Any
            if method == "Segment":
                call = stubs.SegmentationStub(channel).Segment
                message: Any = pb.SegmentRequest(image=b"an image")
            else:
                call = oip_stubs.GRPCInferenceServiceStub(channel).ModelInfer
                message = oip.ModelInferRequest(model_name="tiny")
                message.inputs.add(name="image", datatype="UINT8", shape=(1, 2, 2, 3))
                message.raw_input_contents.append(bytes(12))
            with pytest.raises(grpc.RpcError) as caught:
                await call(message, metadata=(("x-request-id", "job-7"),), timeout=30)
            return caught.value
    finally:
        await parts.grpc.stop(0)


def details(error: Any) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo]:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    assert status is not None
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(retry)
    return info, retry


@pytest.mark.parametrize("method", ["Segment", "ModelInfer"])
async def test_grpc(method: str, traceback: Any) -> None:
    parts = Parts()
    error = await refused(parts, method)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == f"Internal error: {TOLD}"
    info, retry = details(error)
    assert (info.reason, info.domain) == ("internal-error", "fcn-serve")
    assert not retry.HasField("retry_delay")
    assert parts.counted("INTERNAL", method, "grpc")
    traceback("job-7")


class Limited:
    """Keys whose holders have asked for too much: a limit by key would be told like this."""

    required = True

    def admit(self, keys: object, *, role: str, address: str) -> Any:
        assert address == "127.0.0.1"
        raise Overloaded(7.5)


async def test_whatever_judges_the_key_is_told_alike() -> None:
    parts = Parts(Limited())
    transport = httpx.ASGITransport(parts.rest)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        reply = await client.post("/segment", content=b"an image")
        assert (await client.get("/livez")).status_code == 200
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "8")
    assert reply.json()["type"] == "urn:fcn:problem:overloaded"
    for method in ("Segment", "ModelInfer"):
        error = await refused(Parts(Limited()), method)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        info, retry = details(error)
        assert (info.reason, retry.retry_delay.seconds) == ("overloaded", 8)
        assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "8000"
