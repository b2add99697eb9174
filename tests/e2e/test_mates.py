"""An answer is the same to the bit, alone or in a batch, on whichever instance."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from service.core.batching.batcher import Batcher
from service.core.engines.onnx_runtime import Session
from service.core.types import NullObserver
from tests.drawing import street
from tests.serving import ROOT
from tests.unit.core.fakes import Function

MODEL = ROOT / "model_repository" / "camvid-fcn8s-mobilenet_v1" / "1" / "model.onnx"
SIZES = ((96, 128), (75, 101), (33, 40))


async def test_mates_and_instances_change_nothing() -> None:
    sessions = [Session(MODEL, provider="cpu", threads=threads) for threads in (1, 1, 2)]
    batcher = Batcher(
        [
            *(session.instances[0] for session in sessions[:2]),
            Function(sessions[2].instances[0].run, full_device=True),
        ],
        model="shipped",
        max_batch=4,
        max_batch_pixels=1 << 20,
        max_queue=100,
        observer=NullObserver(),
        clock=time.monotonic,
    )
    batcher.start()
    pictures = [street(*SIZES[n % len(SIZES)], seed=n) for n in range(18)]
    try:
        answers = [await batcher.submit(pictures[0])]
        answers += await asyncio.gather(*(batcher.submit(p) for p in pictures[1:]))
    finally:
        batcher.close()
    assert {answer.batch_size for answer in answers} >= {1, 4}
    for picture, answer in zip(pictures, answers, strict=True):
        (alone,) = sessions[0].run(picture[None])
        np.testing.assert_array_equal(answer.label_map, alone)
