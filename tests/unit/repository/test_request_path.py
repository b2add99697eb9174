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

from service.api.stubs import segmentation_pb2 as pb
from service.api.stubs import segmentation_pb2_grpc as stubs
from service.api.transports import build
from service.config import ApiConfig, SegmenterConfig
from service.core.segmenter import Segmenter
from service.telemetry import Telemetry
from tests.drawing import jpeg, street
from tests.tiny_models import write_model
from tests.unit.repository.pages import ROOT

IMAGE = jpeg(street(40, 56))
TICKS = {"service/core/models/manager.py", "service/core/models/watchdog.py"}
"""These look after models every few seconds, whoever asks meanwhile."""
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
async def asking(transport: str, segmenter: Segmenter, telemetry: Telemetry) -> AsyncIterator[Ask]:
    """How to send the image over one transport and check that it was answered."""
    rest, grpc = build(segmenter, telemetry, ApiConfig(), keys=None, ready=segmenter.ready)
    if transport == "grpc":
        target = f"127.0.0.1:{grpc.bind('127.0.0.1:0')}"
        await grpc.start()
        async with aio.insecure_channel(target) as channel:
            segment: Any = stubs.SegmentationStub(channel).Segment

            async def call() -> None:
                assert (await segment(pb.SegmentRequest(image=IMAGE), timeout=30)).body

            yield call
        await grpc.stop(0)
        return
    path, headers = "/segment", {"Content-Type": "image/jpeg"}
    if transport == "oip":
        path, headers = "/v2/models/tiny/infer", {"Inference-Header-Content-Length": "0"}
    channel_to = httpx.ASGITransport(rest)
    async with httpx.AsyncClient(transport=channel_to, base_url="http://x") as client:

        async def post() -> None:
            assert (await client.post(path, content=IMAGE, headers=headers)).status_code == 200

        yield post


@pytest.mark.parametrize(
    ("transport", "at_most"), [("rest", 16), ("grpc", 18), ("oip", 22)], ids=lambda v: str(v)
)
async def test_modules_on_the_way_of_one_image(
    tmp_path: Path, transport: str, at_most: int
) -> None:
    write_model(tmp_path)
    telemetry = Telemetry(0.175)
    with tracing() as trace:
        segmenter = Segmenter(
            SegmenterConfig(model_repository=tmp_path, provider="cpu", intra_op_threads=1),
            observer=telemetry,
        )
        await segmenter.start()
        try:
            async with asking(transport, segmenter, telemetry) as ask:
                await ask()  # the first fills caches
                trace.on = True
                await ask()
                trace.on = False
        finally:
            await segmenter.aclose()
    assert "service/api/call.py" in trace.modules
    assert any(module.startswith("service/core/images/") for module in trace.modules)
    passed = trace.modules - TICKS
    assert len(passed) <= at_most, "\n".join(sorted(passed))
