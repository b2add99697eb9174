"""Chooses the engine of a model file: ONNX Runtime, or OpenVINO where its labels are the same.

ONNX Runtime is the reference. OpenVINO never serves before it has labelled sample images of several
sizes as ONNX Runtime does.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import numpy as np

from service.config import SegmenterConfig
from service.core.engines.cores import Plan, multiplies_int8, plan
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.engines.openvino import open_openvino
from service.core.images.decode import prepare
from service.core.types import Network, UInt8Array
from service.errors import ImageTooLarge, ModelLoadError

ENGINES: Final = ("onnxruntime", "openvino")
PRECISIONS: Final = ("auto", "fp32", "fp16", "int8")
INT8_FILE: Final = "model.int8.onnx"
"""The same network in 8 bits, beside `model.onnx`, as `fcn quantize` writes it."""
FP16_FILE: Final = "model.fp16.onnx"
"""The same on numbers of 16 bits, as `fcn quantize --to fp16` writes it."""
SAMPLE_SIZES: Final = ((97, 131), (256, 256), (240, 320))
"""(height, width): odd, square and wide."""
MIN_AGREEMENT: Final = 0.999
"""Share of each sample image's pixels with the same label; float networks gave 1."""
MIN_AGREEMENT_INT8: Final = 0.97
"""The same for quantised networks: engines round them differently, and labels change on borders.
0.987 to 0.997 were seen, and 0.16 where the labels were wrong."""
_log = logging.getLogger(__name__)


def open_network(path: Path, config: SegmenterConfig, cores: int) -> Network:
    """Opens the file of the wanted precision in the wanted engine.

    config: its engine is one of `ENGINES`; on a GPU there is ONNX Runtime only. provider: see
    `open_onnx_runtime`. precision: one of `PRECISIONS`; "fp32" is the file at `path`, "int8" and
    "fp16" those beside it, and "auto" takes fp16 where it exists and the network runs on a GPU,
    int8 on a CPU made for it. cores: of this machine.

    Raises: ModelLoadError, also when OpenVINO cannot be had or disagrees, or when there is no file
    of that precision.
    """
    if config.engine not in ENGINES:
        raise ModelLoadError(f"engine {config.engine!r}: choose one of {', '.join(ENGINES)}")
    shares = plan(
        cores,
        instances=config.instances,
        threads=config.intra_op_threads,
        alone_threads=config.alone_threads,
    )
    session = _open_session(path, config, shares)
    if config.engine == "onnxruntime":
        return session
    if session.provider != "cpu":
        raise ModelLoadError(
            "OpenVINO runs on the CPU and this model would run on a GPU: set FCN_PROVIDER=cpu, or "
            "FCN_ENGINE=onnxruntime"
        )
    candidate = open_openvino(session.path, session.contract, shares)
    agreement = check_agreement(candidate, session)
    _log.info("%s in OpenVINO: %.2f%% of the labels of ONNX Runtime", session.path, 100 * agreement)
    return candidate


def _open_session(path: Path, config: SegmenterConfig, shares: Plan) -> Network:
    """Opens the file of that precision in ONNX Runtime."""
    provider, precision = config.provider, config.precision
    if precision not in PRECISIONS:
        raise ModelLoadError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    int8, fp16 = path.with_name(INT8_FILE), path.with_name(FP16_FILE)

    def opened(file: Path, provider: str = provider) -> Network:
        return open_onnx_runtime(
            file,
            provider=provider,
            threads=shares.threads,
            instances=shares.instances,
            alone_threads=shares.alone_threads,
            gpu=config,
        )

    wanted = {"fp32": path, "int8": int8, "fp16": fp16}.get(precision)
    if wanted is not None:
        if wanted != path and not wanted.is_file():
            raise ModelLoadError(
                f"{wanted} is missing: make it with `fcn quantize --to {precision} {path}`, or set "
                "FCN_PRECISION=auto"
            )
        return opened(wanted)
    on_gpu = fp16 if fp16.is_file() else path
    on_cpu = int8 if int8.is_file() and multiplies_int8() else path
    if provider != "auto":
        return opened(on_cpu if provider == "cpu" else on_gpu)
    session = opened(path)  # whether there is a GPU shows in the attempt
    chosen = on_cpu if session.provider == "cpu" else on_gpu
    if chosen == path:
        return session
    del session  # before the other takes its memory
    return opened(chosen, "cpu" if chosen == on_cpu else "auto")


def check_agreement(candidate: Network, reference: Network) -> float:
    """Returns the least share of equal labels over the sample images, in every way to run
    `candidate`.

    Raises: ModelLoadError below `MIN_AGREEMENT`, or `MIN_AGREEMENT_INT8`.
    """
    quantised = reference.contract.precision == "int8"
    needed = MIN_AGREEMENT_INT8 if quantised else MIN_AGREEMENT
    least = 1.0
    # The instances that share the device are alike; the other one may be compiled otherwise.
    runs = {instance.full_device: instance.run for instance in candidate.instances}
    for image in samples(reference):
        wanted = reference.instances[0].run(image)
        for run in runs.values():
            got = run(image)
            share = float((got == wanted).mean()) if got.shape == wanted.shape else 0.0
            if share < needed:
                raise ModelLoadError(
                    f"model {reference.contract.model_name}: OpenVINO gives {share:.1%} of the "
                    f"pixels of a {image.shape[1]}x{image.shape[2]} image the label of ONNX "
                    f"Runtime, and must {needed:.1%}: set FCN_ENGINE=onnxruntime"
                )
            least = min(least, share)
    return least


def samples(network: Network) -> list[UInt8Array]:
    """Draws images uint8 RGB [1,H,W,3] of `SAMPLE_SIZES`, as far as the model takes them.

    Raises: ModelLoadError when it takes none.
    """
    images: dict[tuple[int, ...], UInt8Array] = {}
    for height, width in SAMPLE_SIZES:
        try:
            tensor = prepare(_image(height, width), network.contract.input)[None]
        except ImageTooLarge:
            continue
        images[tensor.shape] = tensor
    if not images:
        sizes = ", ".join(f"{height}x{width}" for height, width in SAMPLE_SIZES)
        raise ModelLoadError(
            f"model {network.contract.model_name} takes none of the sizes {sizes}, in which "
            "OpenVINO is compared with ONNX Runtime: set FCN_ENGINE=onnxruntime"
        )
    return list(images.values())


def _image(height: int, width: int) -> UInt8Array:
    """Draws uint8 RGB [H,W,3], always the same for a size."""
    generator = np.random.default_rng(0)
    down, across = np.mgrid[0:height, 0:width]
    pixels = np.stack(
        [90 + 80 * down / height, 110 + 60 * across / width, 170 - 120 * down / height], axis=-1
    )
    for _ in range(6):
        top, left = int(generator.integers(height)), int(generator.integers(width))
        pixels[top : top + height // 3, left : left + width // 4] = generator.integers(0, 256, 3)
    pixels += generator.normal(0, 6, pixels.shape)
    image: UInt8Array = np.clip(pixels, 0, 255).astype(np.uint8)
    return image
