"""Each step's cost is told, and large images are run in tiles."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.contract import InputSpec
from service.core.batching.tiles import covered_s
from service.core.outputs import confidence, png
from service.core.types import UInt8Array
from service.errors import DeadlineExceeded, ImageTooLarge, InferenceFailed
from tests import drawing, tiny_models
from tests.drawing import read_png
from tests.tiny_models import expected_label_map, write_model
from tests.unit.core.fakes import POISON, WAIT_S, Device, Recorder
from tests.unit.core.segmenters import OPTIONS, PNG, RGB, FakeNetwork, serving

# What each step costs is told of that step


class Ticking:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(Device):
    """Takes a second for a run of the network, whatever comes after it."""

    def __init__(self, clock: Ticking) -> None:
        super().__init__()
        self._clock = clock

    def run(self, batch: UInt8Array) -> UInt8Array:
        self._clock.now += 1.0
        return batch[..., 0]


@pytest.mark.parametrize("output", ["label_map", "confidence"])
async def test_infer_is_the_networks_run_and_render_all_that_is_made_of_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    """Also what the device's thread makes."""
    write_model(tmp_path)
    clock = Ticking()
    network = FakeNetwork(Slow(clock), contract=tiny_models.contract(logits=True))
    for module, name in ((png, "label_map_png"), (confidence, "confidence")):
        real = getattr(module, name)

        def slow(*args: Any, real: Any = real) -> Any:
            clock.now += 4.0
            return real(*args)

        monkeypatch.setattr(module, name, slow)
    recorder = Recorder()
    async with serving(
        tmp_path, open_network=lambda path: network, clock=clock, observer=recorder
    ) as segmenter:
        timings = (await segmenter.segment(PNG, replace(OPTIONS, output=output))).timings
    assert (timings.infer_s, timings.render_s) == (1.0, 4.0)


async def test_a_reply_without_a_body_takes_no_way_over_the_pool(tmp_path: Path) -> None:
    write_model(tmp_path)
    async with serving(tmp_path) as segmenter:
        submitted: list[object] = []
        segmenter._pool.run = submitted.append  # type: ignore[method-assign, assignment]
        reply = await segmenter.segment(PNG, replace(OPTIONS, output=None))
    assert (reply.label_map == expected_label_map(RGB)).all()
    assert (reply.body, reply.media_type, submitted) == (b"", "", [])


# Tiles


def in_tiles(network: FakeNetwork, context_px: int | None = 4) -> dict[str, Any]:
    """Options for a server that runs 23 x 31 pixels in tiles of at most 200."""
    spec = InputSpec(stride=4, context_px=context_px)
    network.contract = replace(network.contract, input=spec)
    return {"open_network": lambda path: network, "max_whole_pixels": 200}


async def test_a_large_image_is_run_in_tiles_that_fit(tmp_path: Path) -> None:
    write_model(tmp_path)
    network = FakeNetwork()
    async with serving(tmp_path, **in_tiles(network)) as segmenter:
        network.device.batches.clear()
        reply = await segmenter.segment(PNG, OPTIONS)
    assert np.array_equal(read_png(reply.body), RGB[..., 0])
    assert len(network.device.batches) > 3
    assert all(batch[0, :, :, 0].size <= 200 for batch in network.device.batches)
    assert reply.timings.infer_s > 0


async def test_the_times_of_tiles_are_those_that_passed(tmp_path: Path) -> None:
    """Two instances run tiles side by side: the sum over them is more than the time it took."""
    write_model(tmp_path)
    network = FakeNetwork()
    network.instances = (network.device, network.device)
    async with serving(tmp_path, **in_tiles(network)) as segmenter:
        began = time.monotonic()
        times = (await segmenter.segment(PNG, OPTIONS)).timings
        passed_s = time.monotonic() - began
    assert times.infer_s > 0
    assert times.decode_s + times.queue_s + times.infer_s + times.render_s <= passed_s


def test_time_that_spans_share_counts_once() -> None:
    assert covered_s([(5, 6), (0, 2), (1, 3), (1.5, 2)]) == 4
    assert covered_s([]) == 0


async def test_a_tile_that_fails_fails_its_image(tmp_path: Path) -> None:
    write_model(tmp_path)
    network = FakeNetwork()
    image = RGB.copy()
    image[..., 0] = POISON
    async with serving(tmp_path, **in_tiles(network)) as segmenter:
        with pytest.raises(InferenceFailed):
            await segmenter.segment(drawing.png(image), OPTIONS)
        # Nothing of it is left behind.
        assert np.array_equal(read_png((await segmenter.segment(PNG, OPTIONS)).body), RGB[..., 0])
        assert await segmenter.drain(WAIT_S)


async def test_the_deadline_holds_between_tiles(tmp_path: Path) -> None:
    write_model(tmp_path)
    network = FakeNetwork()
    async with serving(tmp_path, **in_tiles(network)) as segmenter:
        network.device.hold()
        asked = asyncio.create_task(segmenter.segment(PNG, replace(OPTIONS, deadline_s=0.2)))
        with pytest.raises(DeadlineExceeded):
            await asked
        network.device.release()


async def test_a_network_that_needs_the_whole_image_refuses_a_large_one(tmp_path: Path) -> None:
    write_model(tmp_path)
    options = in_tiles(FakeNetwork(), context_px=None)
    async with serving(tmp_path, **options) as segmenter:
        with pytest.raises(ImageTooLarge, match="needs the image whole"):
            await segmenter.segment(PNG, OPTIONS)
