"""Chooses the engine of a model file: ONNX Runtime, or OpenVINO where its labels are the same.

ONNX Runtime is the reference. OpenVINO never serves before it has labelled sample images of several
sizes as ONNX Runtime does.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from service.config import ENGINES, PRECISIONS, SegmenterConfig
from service.core.engines.cores import Plan, cpu_flags, multiplies_int8, plan
from service.core.engines.cuda import built_for
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.engines.openvino import open_openvino
from service.core.images.decode import prepare
from service.core.types import Network, Observer, UInt8Array
from service.errors import ImageTooLarge, ModelLoadError

INT8_FILE: Final = "model.int8.onnx"
"""The same network in 8 bits, beside `model.onnx`, as `fcn quantize` writes it."""
FP16_FILE: Final = "model.fp16.onnx"
"""The same on numbers of 16 bits, as `fcn quantize --to fp16` writes it."""
BF16_FLAGS: Final = ("amx_bf16", "avx512_bf16")
"""One of these is among the flags of a CPU that multiplies bf16 faster than fp32."""
FASTER_IN_OPENVINO: Final = {"int8": "amx_int8", "bf16": "amx_bf16"}
"""Precisions in which OpenVINO serves by itself, and what the CPU must be able to do.

Images/s on two cores of a Xeon with AMX, shipped model at 480x360: int8 through the server 92 in
ONNX Runtime and 137 in OpenVINO; network alone fp32 34 and bf16 118. Elsewhere ONNX Runtime was as
fast (Zen 4, AVX2), or OpenVINO took twice the memory for 1.4 times the images (Zen 5;
bench/LOG.md)."""
SAMPLE_SIZES: Final = ((97, 131), (256, 256))
"""(height, width): odd and wide; and square, which is warmed up in any case. Each is compiled."""
MIN_AGREEMENT: Final = 0.999
"""Share of each sample image's pixels with the same label; float networks gave 1."""
MIN_AGREEMENT_ROUNDED: Final = 0.97
"""The same for networks in int8 and bf16: engines round them differently, and labels change on
borders. 0.987 to 0.997 were seen, and 0.16 where the labels were wrong."""
_log = logging.getLogger(__name__)


def open_network(config: SegmenterConfig, cores: int, observer: Observer, path: Path) -> Network:
    """Opens the file of the wanted precision in the wanted engine.

    config: its engine is one of `ENGINES`; on a GPU there is ONNX Runtime only. provider: see
    `open_onnx_runtime`. precision: one of `PRECISIONS`; "fp32" is the file at `path`, "int8" and
    "fp16" those beside it, and "bf16" rounds the file at `path` on CPUs made for it. "auto" takes
    what is there and fastest: fp16 on a GPU, int8 or bf16 on a CPU. cores: of this machine.
    observer: is told of compilations.

    Raises: ModelLoadError, also when OpenVINO was asked for by name and cannot be had or disagrees
    (chosen by "auto", ONNX Runtime takes its place), or when there is no file of that precision.
    """
    for name, value, known in (
        ("engine", config.engine, ENGINES),
        ("precision", config.precision, PRECISIONS),
    ):
        if value not in known:
            raise ModelLoadError(f"{name} {value!r}: choose one of {', '.join(known)}")
    shares = plan(
        cores,
        instances=config.instances,
        threads=config.intra_op_threads,
        alone_threads=config.alone_threads,
    )
    opened = partial(
        open_onnx_runtime,
        threads=shares.threads,
        instances=shares.instances,
        alone_threads=shares.alone_threads,
        gpu=config,
    )
    failed = ""
    if config.provider != "cpu" and (config.provider != "auto" or built_for("cuda")):
        network = opened(_gpu_file(path, config.precision), provider=config.provider)
        if network.provider != "cpu":
            if config.engine == "openvino" or config.precision == "bf16":
                raise ModelLoadError(
                    "OpenVINO runs on the CPU and this model would run on a GPU: set "
                    "FCN_PROVIDER=cpu, or FCN_ENGINE=auto and FCN_PRECISION=auto"
                )
            return network
        failed = network.instead_of
        del network  # before the next takes its memory
    network = _open_on_cpu(path, config, shares, observer, partial(opened, provider="cpu"))
    network.instead_of = failed or network.instead_of
    return network


def _open_on_cpu(
    path: Path,
    config: SegmenterConfig,
    shares: Plan,
    observer: Observer,
    opened: Callable[[Path], Network],
) -> Network:
    """Raises: as `open_network`."""
    engine, precision = cpu_choice(path, config, cpu_flags())
    file = _file(path, precision)
    if engine == "onnxruntime":
        return opened(file)
    try:
        return _open_openvino(file, precision, config, shares, observer)
    except ModelLoadError as error:
        if config.engine == "openvino" or config.precision == "bf16":
            raise
        _log.warning("%s runs in ONNX Runtime: %s", path, error)
        _, precision = cpu_choice(path, replace(config, engine="onnxruntime"), cpu_flags())
        network = opened(_file(path, precision))
        network.instead_of = "openvino"
        return network


def cpu_choice(path: Path, config: SegmenterConfig, flags: frozenset[str]) -> tuple[str, str]:
    """Returns the engine and the precision for a CPU that can do `flags`.

    Raises: ModelLoadError when bf16 is asked for and cannot be had.
    """
    engine, precision = config.engine, config.precision
    faster = {name for name, needed in FASTER_IN_OPENVINO.items() if needed in flags}
    if precision == "bf16" and (engine == "onnxruntime" or flags.isdisjoint(BF16_FLAGS)):
        raise ModelLoadError(
            "bf16 takes OpenVINO and a CPU made for it (AMX, AVX512_BF16): set FCN_PRECISION=auto"
        )
    if engine == "auto" and faster and find_spec("openvino") is None:
        _log.info("this CPU is faster with OpenVINO: pip install 'fcn-serve[cpu]'")
        engine = "onnxruntime"
    if precision == "auto":
        if path.with_name(INT8_FILE).is_file() and multiplies_int8(flags):
            precision = "int8"
        else:
            precision = "bf16" if engine != "onnxruntime" and "bf16" in faster else "fp32"
    if engine == "auto":
        engine = "openvino" if precision in {*faster, "bf16"} else "onnxruntime"
    return engine, precision


def _gpu_file(path: Path, precision: str) -> Path:
    if precision == "auto":
        fp16 = path.with_name(FP16_FILE)
        return fp16 if fp16.is_file() else path
    return _file(path, precision)


def _file(path: Path, precision: str) -> Path:
    """Raises: ModelLoadError when there is none of that precision."""
    name = {"int8": INT8_FILE, "fp16": FP16_FILE}.get(precision)
    if name is None:
        return path
    file = path.with_name(name)
    if not file.is_file():
        raise ModelLoadError(
            f"{file} is missing: make it with `fcn quantize --to {precision} {path}`, or set "
            "FCN_PRECISION=auto"
        )
    return file


def _open_openvino(
    path: Path,
    precision: str,
    config: SegmenterConfig,
    shares: Plan,
    observer: Observer,
) -> Network:
    """Raises: ModelLoadError, also when its labels are not those of ONNX Runtime."""
    reference = open_onnx_runtime(path, provider="cpu", threads=shares.threads)
    candidate = open_openvino(
        path,
        reference.contract,
        shares,
        bf16=precision == "bf16",
        cache=config.cache_dir,
        compiled=observer.compiled,
    )
    agreement = check_agreement(candidate, reference)
    if not alike(candidate):
        _log.info("%s in OpenVINO: no copy for lone images, which would get other labels", path)
        shares = replace(shares, alone_threads=0)
        return _open_openvino(path, precision, config, shares, observer)
    for instance in candidate.instances:
        instance.forget()  # each size takes tens of megabytes, and nobody may ever send these
    _log.info("%s in OpenVINO: %.2f%% of the labels of ONNX Runtime", path, 100 * agreement)
    return candidate


def check_agreement(candidate: Network, reference: Network) -> float:
    """Returns the least share of equal labels over the sample images, in every way to run
    `candidate`.

    Raises: ModelLoadError below `MIN_AGREEMENT`, or `MIN_AGREEMENT_ROUNDED`.
    """
    needed = MIN_AGREEMENT_ROUNDED if candidate.precision in ("int8", "bf16") else MIN_AGREEMENT
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


def alike(network: Network) -> bool:
    """Tells whether every instance gives the sample images the same labels to the bit: an answer
    must not depend on what else the server has to do."""
    first, *others = {instance.full_device: instance for instance in network.instances}.values()
    return all(
        np.array_equal(first.run(image), other.run(image))
        for image in samples(network)
        for other in others
    )


def samples(network: Network) -> list[UInt8Array]:
    """Draws images uint8 RGB [1,H,W,3] of `SAMPLE_SIZES`, as far as the model takes them: shapes,
    and noise with the statistics of photos.

    Raises: ModelLoadError when it takes none.
    """
    images = []
    for height, width in SAMPLE_SIZES:
        for image in (draw_shapes(height, width), _natural(height, width)):
            with contextlib.suppress(ImageTooLarge):
                images.append(prepare(image, network.contract.input)[None])
    if not images:
        sizes = ", ".join(f"{height}x{width}" for height, width in SAMPLE_SIZES)
        raise ModelLoadError(
            f"model {network.contract.model_name} takes none of the sizes {sizes}, in which "
            "OpenVINO is compared with ONNX Runtime: set FCN_ENGINE=onnxruntime"
        )
    return images


def draw_shapes(height: int, width: int) -> UInt8Array:
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


def _natural(height: int, width: int) -> UInt8Array:
    """Draws uint8 RGB [H,W,3] whose amplitudes fall as 1/f, as those of photos do.

    Source: Field 1987, Relations between the statistics of natural images and the response
    properties of cortical cells.
    """
    noise = np.random.default_rng(1).normal(size=(height, width, 3))
    down, across = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    frequency = np.maximum(np.hypot(down, across), 1 / max(height, width))
    wave = np.fft.ifft2(np.fft.fft2(noise, axes=(0, 1)) / frequency[..., None], axes=(0, 1)).real
    image: UInt8Array = np.clip(128 + 50 * wave / wave.std(), 0, 255).astype(np.uint8)
    return image
