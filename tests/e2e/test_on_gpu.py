"""The shipped model on a GPU, where there is one, against the CPU.

The same runs on pretended GPUs everywhere, so that the test itself is known to work.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from service.core.engines.gpu_sessions import built_for, usable_gpus
from service.core.engines.gpus import GpuOptions, NoGpu
from service.core.engines.onnx_runtime import Session
from tests.drawing import street
from tests.serving import ROOT
from tests.unit.core.pretend_gpu import pretend

UInt8Array = npt.NDArray[np.uint8]

MODEL = ROOT / "model_repository" / "camvid-fcn8s-mobilenet_v1" / "1" / "model.onnx"
SHAPES = ((1, 97, 131), (3, 97, 131), (2, 128, 96), (1, 64, 160), (3, 64, 160))
LEAST_AGREEMENT = 0.999
"""Without TF32. Sums are added up in another order, and labels change where two are as likely."""


@pytest.fixture(params=["pretended", "real"])
def _gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pretended":
        pretend(monkeypatch)
        return
    # Not `need`: the integration server has no GPU either.
    if not built_for("cuda"):
        pytest.skip("this build of ONNX Runtime has no CUDA")
    try:
        usable_gpus(GpuOptions())
    except NoGpu as error:
        pytest.skip(str(error))


def pictures(shape: tuple[int, int, int], seed: int) -> list[UInt8Array]:
    """Streets, each with noise of its own."""
    generator = np.random.default_rng(seed)
    count, height, width = shape
    noise = generator.integers(0, 40, (count, height, width, 3), np.uint8)
    return list(street(height, width)[None] // 2 + noise)


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize("graphs", [False, True])
def test_labels_are_those_of_the_cpu(graphs: bool) -> None:
    cpu = Session(MODEL, provider="cpu", threads=1)
    gpu = Session(
        MODEL, provider="cuda", threads=1, gpu=GpuOptions(instances=2, tf32=False, graphs=graphs)
    )
    assert gpu.provider == "cuda"
    for run in gpu.instances:
        for shape in SHAPES[:3]:
            run.warm_up(np.zeros((*shape, 3), np.uint8))

    def work(number: int) -> list[tuple[UInt8Array, UInt8Array]]:
        """As a lane of the batcher does, beside the others."""
        run = gpu.instances[number]
        found = []
        for seed, shape in enumerate(SHAPES * 2):
            images = pictures(shape, 100 * number + seed)
            found.append((np.stack(images), run.run(run.stack(images))))
        return found

    with ThreadPoolExecutor(len(gpu.instances)) as pool:
        lanes = list(pool.map(work, range(len(gpu.instances))))
    for lane in lanes[:2]:
        for batch, label_maps in lane:
            assert label_maps.shape == batch.shape[:3]
            assert (label_maps == cpu.run(batch)).mean() >= LEAST_AGREEMENT
