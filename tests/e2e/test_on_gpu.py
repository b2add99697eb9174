"""The shipped model on a GPU, where there is one, against the CPU.

The same runs on pretended GPUs everywhere, so that the test itself is known to work.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from service.config import SegmenterConfig
from service.core.engines import cuda
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.errors import ModelLoadError
from tests.drawing import street
from tests.serving import ROOT
from tests.unit.core.pretend_gpu import pretend

UInt8Array = npt.NDArray[np.uint8]

MODEL = ROOT / "model_repository" / "camvid-fcn8s-mobilenet_v1" / "1" / "model.onnx"
SHAPES = ((1, 97, 131), (3, 97, 131), (2, 128, 96), (1, 64, 160), (3, 64, 160))
MIN_AGREEMENT = 0.999
"""Agreement without TF32: other orders of sums change labels where two are as likely."""


@pytest.fixture(params=["pretended", "real"])
def _gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pretended":
        pretend(monkeypatch)
        return
    # Not `need`: the integration server has no GPU either.
    if not cuda.built_for("cuda"):
        pytest.skip("this build of ONNX Runtime has no CUDA")
    try:
        cuda.count_gpus(cuda.cuda_major())
    except ModelLoadError as error:
        pytest.skip(str(error))


def images(shape: tuple[int, int, int], seed: int) -> UInt8Array:
    """Draws streets, each with noise of its own."""
    generator = np.random.default_rng(seed)
    count, height, width = shape
    noise = generator.integers(0, 40, (count, height, width, 3), np.uint8)
    drawn: UInt8Array = street(height, width)[None] // 2 + noise
    return drawn


@pytest.mark.usefixtures("_gpu")
def test_labels_are_those_of_the_cpu() -> None:
    cpu = open_onnx_runtime(MODEL, provider="cpu", threads=1)
    exact = SegmenterConfig(instances=2, provider_options={"cuda": {"use_tf32": "0"}})
    gpu = open_onnx_runtime(MODEL, provider="cuda", threads=1, gpu=exact)
    assert gpu.provider == "cuda"

    def work(number: int) -> list[tuple[UInt8Array, UInt8Array]]:
        """Runs one instance as its device thread does, beside the others."""
        instance = gpu.instances[number]
        found = []
        for seed, shape in enumerate(SHAPES * 2):
            batch = images(shape, 100 * number + seed)
            found.append((batch, instance.run(batch)))
        return found

    with ThreadPoolExecutor(len(gpu.instances)) as pool:
        answers = list(pool.map(work, range(len(gpu.instances))))
    for of_one in answers[:2]:
        for batch, label_maps in of_one:
            assert label_maps.shape == batch.shape[:3]
            assert (label_maps == cpu.instances[0].run(batch)).mean() >= MIN_AGREEMENT
