"""Segmenters with a real ONNX file, or with a device that a test holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from model.contract import Contract
from service.config import SegmenterConfig
from service.core.segmenter import Segmenter
from service.core.types import Network, SegmentOptions, SegmentReply
from tests import drawing, tiny_models
from tests.drawing import street
from tests.tiny_models import write_model
from tests.unit.core.fakes import Device

RGB = street(23, 31)
PNG = drawing.png(RGB)
OPTIONS = SegmentOptions()


CPU = {"provider": "cpu", "intra_op_threads": 1}
_SEAMS = ("observer", "changed", "clock", "open_network")


def segmenter_of(model_repository: Path, **options: Any) -> Segmenter:
    """options: of the config, or one of the segmenter's seams."""
    seams = {name: options.pop(name) for name in _SEAMS if name in options}
    config = SegmenterConfig(model_repository=model_repository, **{**CPU, **options})
    return Segmenter(config, **seams)


@asynccontextmanager
async def serving(repository: Path, **options: Any) -> AsyncIterator[Segmenter]:
    segmenter = segmenter_of(repository, **options)
    await segmenter.start()
    try:
        yield segmenter
    finally:
        await segmenter.aclose()


class FakeNetwork(Network):
    """A network on a device that a test holds; the label map is the red channel."""

    def __init__(self, device: Device | None = None, contract: Contract | None = None) -> None:
        self.device = device or Device()
        super().__init__(
            Path("model.onnx"), contract or tiny_models.contract(), "cpu", (self.device,)
        )


@asynccontextmanager
async def on_device(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[Segmenter, Device]]:
    write_model(tmp_path)
    network = FakeNetwork()
    async with serving(
        tmp_path, open_network=lambda path: network, pool_workers=2, **options
    ) as segmenter:
        try:
            yield segmenter, network.device
        finally:
            network.device.release()


def send(
    segmenter: Segmenter, image: bytes = PNG, options: SegmentOptions = OPTIONS
) -> asyncio.Task[SegmentReply]:
    return asyncio.get_running_loop().create_task(segmenter.segment(image, options))


def red(value: int) -> bytes:
    return drawing.png(np.full((4, 4, 3), value, np.uint8))
