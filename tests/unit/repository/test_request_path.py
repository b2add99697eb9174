"""How many modules of ours a reader meets who follows one image: counted by tracing its calls."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest
from grpc import aio

from service.api.call import Calls
from service.api.grpc import segmentation
from service.api.grpc.segmentation import Segmentation
from service.api.grpc.server import GrpcServer
from service.api.http.routes import create_app
from service.api.oip.infer import Inference
from service.api.oip.operations import Operations
from service.api.oip.rest import OipRest
from service.api.oip.statistics import Statistics
from service.api.stubs import segmentation_pb2 as pb
from service.api.stubs import segmentation_pb2_grpc as stubs
from service.api.uploads import Uploads
from service.config import ApiConfig, SegmenterConfig
from service.core.segmenter import Segmenter
from service.telemetry import Telemetry
from tests.drawing import jpeg, street
from tests.tiny_models import write_model
from tests.unit.repository.pages import ROOT

IMAGE = jpeg(street(40, 56))
Ask = Callable[[], Awaitable[None]]


class Trace:
    """Collects the modules of the project whose functions run, in every thread, while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.modules: set[str] = set()

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if not self.on or event != "call" or frame.f_code.co_name == "<module>":
            return
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in ("service", "model"):
            self.modules.add(str(path.relative_to(ROOT)))


@contextmanager
def tracing() -> Iterator[Trace]:
    """Traces this thread, and those that begin from here on."""
    trace = Trace()
    before = sys.getprofile()
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        yield trace
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


@asynccontextmanager
async def asking(
    transport: str,
    segmenter: Segmenter,
    calls: Calls,
    telemetry: Telemetry,
    config: ApiConfig,
    uploads: Uploads,
) -> AsyncIterator[Ask]:
    """How to send the image over one transport and check that it was answered."""
    if transport == "grpc":
        server = GrpcServer(config)
        service = Segmentation(segmenter, calls, config, uploads)
        server.add(segmentation.SERVICE, service.handler())
        target = f"127.0.0.1:{server.bind('127.0.0.1:0')}"
        await server.start()
        async with aio.insecure_channel(target) as channel:
            segment: Any = stubs.SegmentationStub(channel).Segment

            async def call() -> None:
                assert (await segment(pb.SegmentRequest(image=IMAGE), timeout=30)).body

            yield call
        await server.stop(0)
        return
    app = create_app(segmenter, calls, telemetry, config, uploads=uploads, ready=segmenter.ready)
    statistics = Statistics()
    OipRest(
        segmenter,
        config,
        uploads=uploads,
        inference=Inference(segmenter, statistics, max_pixels=10**6),
        operations=Operations(segmenter, statistics, admin_key=None, ready=segmenter.ready),
    ).add_to(app)
    path, headers = "/segment", {"Content-Type": "image/jpeg"}
    if transport == "oip":
        path, headers = "/v2/models/tiny/infer", {"Inference-Header-Content-Length": "0"}
    channel_to = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=channel_to, base_url="http://x") as client:

        async def post() -> None:
            assert (await client.post(path, content=IMAGE, headers=headers)).status_code == 200

        yield post


@pytest.mark.parametrize(
    ("transport", "at_most"), [("rest", 23), ("grpc", 22), ("oip", 27)], ids=lambda v: str(v)
)
async def test_modules_on_the_way_of_one_image(
    tmp_path: Path, transport: str, at_most: int
) -> None:
    write_model(tmp_path)
    telemetry, config = Telemetry(0.175), ApiConfig()
    with tracing() as trace:
        segmenter = Segmenter(
            SegmenterConfig(model_repository=tmp_path, provider="cpu", intra_op_threads=1),
            observer=telemetry,
        )
        await segmenter.start()
        calls = Calls(telemetry, None, deadline_s=30.0, model_label=lambda name: "")
        uploads = Uploads(max_count=9, max_bytes=10**6, timeout_s=9, rejected=telemetry.rejected)
        try:
            async with asking(transport, segmenter, calls, telemetry, config, uploads) as ask:
                await ask()  # the first fills caches
                trace.on = True
                await ask()
                trace.on = False
        finally:
            await segmenter.aclose()
    assert "service/api/call.py" in trace.modules
    assert any(module.startswith("service/core/images/") for module in trace.modules)
    assert len(trace.modules) <= at_most, "\n".join(sorted(trace.modules))
