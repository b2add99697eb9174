"""Which engine runs a model file: ONNX Runtime, or OpenVINO where its labels are the same.

ONNX Runtime is the yardstick. OpenVINO never serves before it has labelled sample pictures of
several sizes as ONNX Runtime does.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from service.config import SegmenterConfig
from service.core.engines.cores import Plan, multiplies_int8, plan
from service.core.engines.gpus import INSTANCES, MAX_BATCH, GpuOptions
from service.core.engines.onnx_runtime import Session
from service.core.engines.openvino import OpenVinoNetwork
from service.core.images.prepare import prepare
from service.core.types import Network
from service.errors import ImageTooLarge, ModelLoadError

UInt8Array = npt.NDArray[np.uint8]

ENGINES: Final = ("onnxruntime", "openvino", "auto")
PRECISIONS: Final = ("auto", "fp32", "fp16", "int8")
INT8_FILE: Final = "model.int8.onnx"
"""Beside `model.onnx`: the same network in 8 bits, as `fcn quantize` writes it."""
FP16_FILE: Final = "model.fp16.onnx"
"""Beside it, too: on numbers of 16 bits, as `fcn quantize --to fp16` writes it."""
SAMPLE_SIZES: Final = ((97, 131), (256, 256), (240, 320))
"""(height, width): odd, square and wide."""
LEAST_AGREEMENT: Final = 0.999
"""Share of each sample picture's pixels with the same label; float networks gave 1."""
LEAST_AGREEMENT_INT8: Final = 0.97
"""The same of quantised networks: engines round them differently, and labels change on borders.
0.987 to 0.997 were seen, and 0.16 where the labels were wrong."""
_ROUNDS = 3
_log = logging.getLogger(__name__)


def network_opener(config: SegmenterConfig, cores: int) -> Callable[[Path], Network]:
    """Returns `open_network` with what the config says of engines and of this machine's cores."""
    return partial(
        open_network,
        provider=config.provider,
        engine=config.engine,
        precision=config.precision,
        plan=plan(
            cores,
            instances=config.instances,
            threads=config.intra_op_threads,
            alone_threads=config.alone_threads,
        ),
        gpu=GpuOptions(
            devices=config.devices,
            instances=config.instances or INSTANCES,
            memory_limit_bytes=config.gpu_mem_limit_bytes,
            provider_options=config.provider_options,
            sizes=config.warm_up_sizes,
            max_batch=config.max_batch or MAX_BATCH,
        ),
    )


def open_network(
    path: Path,
    *,
    provider: str,
    engine: str,
    plan: Plan,
    precision: str = "auto",
    gpu: GpuOptions | None = None,
) -> Network:
    """engine: one of `ENGINES`; "auto" takes the faster that answers rightly, by a measurement.

    provider, gpu: see `runtime.Session`. On a GPU there is ONNX Runtime only. precision: one of
    `PRECISIONS`; "fp32" is the file at `path`, "int8" and "fp16" those beside it, and "auto" takes
    fp16 where it exists and the network runs on a GPU, int8 on a CPU made for it.

    Raises: ModelLoadError, also when OpenVINO is asked for and cannot be had or disagrees, or a
    precision of which there is no file.
    """
    if engine not in ENGINES:
        raise ModelLoadError(f"engine {engine!r}: choose one of {', '.join(ENGINES)}")
    path, session = _open_session(path, provider, precision, plan, gpu)
    if engine == "onnxruntime":
        return session
    if session.provider != "cpu":
        if engine == "openvino":
            raise ModelLoadError(
                "OpenVINO runs on the CPU and this model would run on a GPU: set FCN_PROVIDER=cpu, "
                "or FCN_ENGINE=onnxruntime"
            )
        return session
    if engine == "auto" and importlib.util.find_spec("openvino") is None:
        return session
    try:
        candidate = OpenVinoNetwork(path, session.contract, plan)
        agreement = check_agreement(candidate, session)
    except ModelLoadError as error:
        if engine == "openvino":
            raise
        _log.warning("ONNX Runtime instead of OpenVINO: %s", error)
        return session
    _log.info("%s in OpenVINO: %.2f%% of the labels of ONNX Runtime", path, 100 * agreement)
    if engine == "auto":
        picture = samples(session)[-1]
        ours, theirs = (_seconds(n.instances[0].run, picture) for n in (session, candidate))
        faster = candidate if theirs < ours else session
        _log.info(
            "%s: %.1f ms in ONNX Runtime, %.1f ms in OpenVINO: taking the faster",
            path,
            ours * 1e3,
            theirs * 1e3,
        )
        return faster
    return candidate


def _open_session(
    path: Path, provider: str, precision: str, plan: Plan, gpu: GpuOptions | None
) -> tuple[Path, Session]:
    """The file of that precision, and ONNX Runtime with it."""
    if precision not in PRECISIONS:
        raise ModelLoadError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    small, half = path.with_name(INT8_FILE), path.with_name(FP16_FILE)
    asked = {"fp32": path, "int8": small, "fp16": half}.get(precision)
    if asked is not None and not asked.is_file() and asked != path:
        raise ModelLoadError(
            f"{asked} is missing: make it with `fcn quantize --to {precision} {path}`, or set "
            "FCN_PRECISION=auto"
        )

    def opened(file: Path, provider: str = provider) -> Session:
        return Session(
            file,
            provider=provider,
            threads=plan.threads,
            instances=plan.instances,
            alone_threads=plan.alone_threads,
            gpu=gpu,
        )

    if asked is not None:
        return asked, opened(asked)
    on_gpu = half if half.is_file() else path
    on_cpu = small if small.is_file() and multiplies_int8() else path
    if provider == "cpu":
        return on_cpu, opened(on_cpu)
    if provider != "auto":
        return on_gpu, opened(on_gpu)
    session = opened(path)  # whether there is a GPU shows in the attempt
    chosen = on_cpu if session.provider == "cpu" else on_gpu
    if chosen == path:
        return path, session
    del session  # before the other takes its memory
    return chosen, opened(chosen, "cpu" if chosen == on_cpu else "auto")


def check_agreement(candidate: Network, reference: Network) -> float:
    """The least share of equal labels over the sample pictures, in every way to run `candidate`.

    Raises: ModelLoadError below `LEAST_AGREEMENT`, or `LEAST_AGREEMENT_INT8`.
    """
    quantised = reference.contract.precision == "int8"
    needed = LEAST_AGREEMENT_INT8 if quantised else LEAST_AGREEMENT
    least = 1.0
    # The instances that share the device are alike; the other one may be compiled otherwise.
    runs = {instance.full_device: instance.run for instance in candidate.instances}
    for picture in samples(reference):
        wanted = reference.instances[0].run(picture)
        for run in runs.values():
            got = run(picture)
            share = float((got == wanted).mean()) if got.shape == wanted.shape else 0.0
            if share < needed:
                raise ModelLoadError(
                    f"model {reference.contract.model_name}: OpenVINO gives {share:.1%} of the "
                    f"pixels of a {picture.shape[1]}x{picture.shape[2]} picture the label of ONNX "
                    f"Runtime, and must {needed:.1%}: set FCN_ENGINE=onnxruntime"
                )
            least = min(least, share)
    return least


def samples(network: Network) -> list[UInt8Array]:
    """uint8 RGB [1,H,W,3], drawn: shaded sky and ground with boxes and some grain.

    Of `SAMPLE_SIZES`, as far as the model takes them.

    Raises: ModelLoadError when it takes none.
    """
    pictures: dict[tuple[int, ...], UInt8Array] = {}
    for height, width in SAMPLE_SIZES:
        try:
            tensor = prepare(_picture(height, width), network.contract.input).tensor[None]
        except ImageTooLarge:
            continue
        pictures[tensor.shape] = tensor
    if not pictures:
        sizes = ", ".join(f"{height}x{width}" for height, width in SAMPLE_SIZES)
        raise ModelLoadError(
            f"model {network.contract.model_name} takes none of the sizes {sizes}, in which "
            "OpenVINO is compared with ONNX Runtime: set FCN_ENGINE=onnxruntime"
        )
    return list(pictures.values())


def _picture(height: int, width: int) -> UInt8Array:
    """uint8 RGB [H,W,3], always the same for a size."""
    generator = np.random.default_rng(0)
    down, across = np.mgrid[0:height, 0:width]
    pixels = np.stack(
        [90 + 80 * down / height, 110 + 60 * across / width, 170 - 120 * down / height], axis=-1
    )
    for _ in range(6):
        top, left = int(generator.integers(height)), int(generator.integers(width))
        pixels[top : top + height // 3, left : left + width // 4] = generator.integers(0, 256, 3)
    pixels += generator.normal(0, 6, pixels.shape)
    picture: UInt8Array = np.clip(pixels, 0, 255).astype(np.uint8)
    return picture


def _seconds(run: Callable[[UInt8Array], UInt8Array], picture: UInt8Array) -> float:
    """The best of a few runs, after the one that allocates."""
    run(picture)
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        run(picture)
        times.append(time.perf_counter() - started)
    return min(times)
