"""An answer is the same to the bit, alone or in a batch, on whichever instance."""

from __future__ import annotations

import asyncio

import numpy as np

from service.core.engines.onnx_runtime import open_onnx_runtime
from tests.drawing import street
from tests.serving import ROOT
from tests.unit.core.fakes import Function
from tests.unit.core.queues import serving, submit

MODEL = ROOT / "model_repository" / "camvid-fcn8s-mobilenet_v1" / "1" / "model.onnx"
SIZES = ((96, 128), (75, 101), (33, 40))


async def test_mates_and_instances_change_nothing() -> None:
    sessions = [open_onnx_runtime(MODEL, provider="cpu", threads=threads) for threads in (1, 1, 2)]
    instances = [
        *(session.instances[0] for session in sessions[:2]),
        Function(sessions[2].instances[0].run, full_device=True),
    ]
    images = [street(*SIZES[n % len(SIZES)], seed=n) for n in range(18)]
    async with serving(*instances) as queue:
        answers = [await submit(queue, images[0])]
        answers += await asyncio.gather(*(submit(queue, p) for p in images[1:]))
    assert {answer.batch_size for answer in answers} >= {1, 4}
    for image, answer in zip(images, answers, strict=True):
        (alone,) = sessions[0].instances[0].run(image[None])
        np.testing.assert_array_equal(answer.label_map, alone)
