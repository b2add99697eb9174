from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from service.config import SegmenterConfig
from service.core.engines.warm_up import batch_shapes, warm_up, warm_up_batches
from service.core.models import loader
from service.core.models.loader import Loader
from service.core.models.model_settings import ModelSettings
from service.core.models.repository import ModelFile
from service.core.segmenter import Segmenter
from service.core.types import Float32Array, Instance, Network, Observer, SegmentOptions, UInt8Array
from service.errors import ModelLoadError
from tests import drawing, tiny_models
from tests.unit.core.pretend_gpu import GPUS, pretend


@dataclass
class Run(Instance):
    """An instance that notes how it is called, each call at the cost of a second."""

    calls: list[tuple[int, ...]] = field(default_factory=list)
    shrinks: bool = False

    def run(self, batch: UInt8Array) -> UInt8Array:
        self.calls.append(batch.shape[:3])
        return np.zeros(batch.shape[:3], np.uint8)[: len(batch) - self.shrinks]

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        raise NotImplementedError


def on_gpu(*runs: Run) -> Network:
    return Network(Path("model.onnx"), tiny_models.contract(), "cuda", runs)


def test_batches_are_of_every_number_and_size_full_ones_first() -> None:
    assert batch_shapes([(8, 8), (4, 4), (8, 8)], 3, 1 << 20) == [
        (3, 8, 8),
        (3, 4, 4),
        (2, 8, 8),
        (2, 4, 4),
    ]
    assert batch_shapes([(8, 8)], 1, 1 << 20) == []


def test_batches_that_never_come_are_left_out() -> None:
    assert batch_shapes([(8, 8), (4, 4)], 4, 130) == [(4, 4, 4), (2, 8, 8), (3, 4, 4), (2, 4, 4)]


def test_every_instance_prepares_every_shape() -> None:
    runs = Run(), Run()
    warm_up(on_gpu(*runs), [(8, 9)])
    left = warm_up_batches(on_gpu(*runs), [(3, 8, 9), (2, 8, 9)], 60, lambda: 0.0)
    assert left == []
    for run in runs:
        assert run.calls == [(n, 8, 9) for n in (1, 3, 2)]


def test_batches_stop_when_the_time_is_over() -> None:
    run = Run()
    shapes = [(n, 8, 8) for n in range(9, 1, -1)]
    left = warm_up_batches(on_gpu(run), shapes, 3.5, lambda: float(len(run.calls)))
    assert run.calls == shapes[:4]
    assert left == shapes[4:]


def test_a_batch_that_is_answered_in_another_shape_is_refused() -> None:
    says = r"answers a batch of 2 8x8 images with shape \[1, 8, 8\], not \[2, 8, 8\]"
    with pytest.raises(ModelLoadError, match=says):
        warm_up_batches(on_gpu(Run(shrinks=True)), [(2, 8, 8)], 60, lambda: 0.0)


def load(path: Path, net: Network, max_batch: int | None = None) -> None:
    made = Loader(
        SegmenterConfig(max_batch=max_batch, warm_up_sizes=((8, 8),)),
        open_network=lambda file: net,
        observer=Observer(),
        clock=lambda: float(sum(len(run.calls) for run in net.instances if isinstance(run, Run))),
    )
    made.load(ModelFile("tiny", "1", path), ModelSettings())


def test_a_gpu_is_warmed_up_with_the_batches_it_will_get(tmp_path: Path) -> None:
    run = Run()
    load(tiny_models.write_model(tmp_path), on_gpu(run), max_batch=2)
    assert run.calls == [
        (1, 8, 8),
        (1, 256, 256),
        (2, 8, 8),
        (2, 256, 256),
        (1, 256, 256),  # how long it takes
    ]


def test_readiness_does_not_wait_for_rare_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loader, "BATCHES_S", 3.0)
    run = Run()
    with caplog.at_level(logging.WARNING):
        load(tiny_models.write_model(tmp_path), on_gpu(run))
    assert len(run.calls) == 2 + 3 + 1
    assert "11 batches are not warmed up after 3 s" in caplog.text


async def test_a_server_on_gpus_answers_and_says_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = pretend(monkeypatch)
    tiny_models.write_model(tmp_path)
    segmenter = Segmenter(
        SegmenterConfig(
            model_repository=tmp_path,
            provider="cuda",
            instances=1,
            max_batch=2,
            warm_up_sizes=((24, 32),),
        )
    )
    await segmenter.start()
    rgb = drawing.street(24, 32)
    reply = await segmenter.segment(rgb, SegmentOptions(output=None))
    assert (reply.label_map == tiny_models.expected_label_map(rgb)).all()
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (24, 32 + 8 * (n % 2), 3), np.uint8) for n in range(30)]
    replies = await asyncio.gather(
        *(segmenter.segment(image, SegmentOptions(output=None)) for image in images)
    )
    assert max(reply.batch_size for reply in replies) == 2
    for image, reply in zip(images, replies, strict=True):
        assert (reply.label_map == tiny_models.expected_label_map(image)).all()
    assert [model.default.provider for model in segmenter.models()] == ["cuda"]
    assert len(pretended.opened) == GPUS
    # Whoever launches kernels does not stand back for the event loop, as the CPU's threads do.
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert set().union(*(opened.nice for opened in pretended.opened)) == {usual}
    await segmenter.aclose()
