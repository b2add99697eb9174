"""Finds out what this machine has, what the server makes of it, and what would make it faster."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.config import SegmenterConfig
from service.core.engines.choice import (
    BF16_FLAGS,
    FASTER_IN_OPENVINO,
    FP16_FILE,
    INT8_FILE,
    cpu_choice,
)
from service.core.engines.cores import (
    available_cores,
    cpu_flags,
    cpu_model,
    cpu_quota,
    multiplies_int8,
    plan,
)
from service.core.engines.cuda import built_for, count_gpus, cuda_major
from service.core.engines.memory import admitted_bytes, available_memory_bytes, whole_pixels
from service.core.models.repository import scan
from service.errors import ModelLoadError, ServiceError
from service.settings import Settings

LEAST_BYTES: Final = 768 * 1024 * 1024
"""Memory below which Linux ends servers. Source: docs/operations.md, Containers."""
_PACKAGES: Final = (
    *("fcn-serve", "onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "pillow", "simplejpeg"),
    *("uvicorn", "uvloop", "fastapi", "grpcio", "protobuf", "opentelemetry-sdk"),
)
_FLAGS: Final = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)
"""Features that engines make use of, in Linux's words."""
_GIB: Final = 1024**3

Fact = tuple[str, str]
"""A subject, and a sentence or list about it."""


def facts(settings: Settings) -> Iterator[Fact]:
    """Lists what there is and what was chosen; "advice" tells what would make it faster."""
    config, flags = settings.segmenter_config(), cpu_flags()
    yield "versions", ", ".join((f"Python {platform.python_version()}", *_versions()))
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield "processor", f"{cpu_model() or 'unknown'}: {' '.join(f for f in _FLAGS if f in flags)}"
    yield "cores", _cores(config)
    yield "memory", _memory(config)
    gpu, on_gpu = _gpu(config)
    yield "gpu", gpu
    try:
        files = [file.path for file in scan(config.model_repository)]
    except ServiceError as error:
        yield "models", str(error)
        files = []
    for path in files:
        yield f"model {path}", _fp16(path) if on_gpu else _on_cpu(path, config, flags)
    for advice in _advice(settings, files, flags, on_gpu):
        yield "advice", advice


def _versions() -> Iterator[str]:
    for name in _PACKAGES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue


def _cores(config: SegmenterConfig) -> str:
    cores, quota = available_cores(), cpu_quota()
    shares = plan(
        cores,
        instances=config.instances,
        threads=config.intra_op_threads,
        alone_threads=config.alone_threads,
    )
    allowed = "no limit by the cgroup" if quota is None else f"the cgroup allows {quota:g}"
    return (
        f"{cores} of {os.cpu_count()} ({allowed}): {shares.instances} inferences at once, "
        f"threads of each: {shares.threads}, of a lone one: {shares.alone_threads}"
    )


def _memory(config: SegmenterConfig) -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usable = available_memory_bytes()
    limit = "no limit by the cgroup" if usable >= total else f"{total / _GIB:.1f} GiB in all"
    whole = config.max_whole_pixels or whole_pixels(usable)
    admitted = admitted_bytes(usable, config.max_inflight_pixels)
    return (
        f"{usable / _GIB:.1f} GiB ({limit}): {admitted / 1e6:.0f} MB for images being answered; "
        f"above {whole / 1e6:.1f} megapixels an image is run in tiles"
    )


def _gpu(config: SegmenterConfig) -> tuple[str, bool]:
    """Returns what there is and why it is used or not, and whether it is."""
    try:
        count = count_gpus(cuda_major() if built_for("cuda") else None)
    except ModelLoadError as error:
        return f"none: {error}", False
    cards = _cards() or f"{count} by the driver"
    if not built_for("cuda"):
        return f"{cards}; not used: this ONNX Runtime is built for the CPU", False
    if config.provider == "cpu":
        return f"{cards}; not used: FCN_PROVIDER=cpu", False
    return f"{cards}; used by ONNX Runtime, CUDA {cuda_major()}", True


def _cards() -> str:
    """Asks nvidia-smi, where there is one, for names, memory and the driver's version."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(  # nosec B603  # nothing of it is a caller's
            [program, *query], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""


def _fp16(path: Path) -> str:
    fp16 = path.with_name(FP16_FILE)
    file = fp16 if fp16.is_file() else path
    return f"ONNX Runtime on the GPU runs {file.name}"


def _on_cpu(path: Path, config: SegmenterConfig, flags: frozenset[str]) -> str:
    try:
        engine, precision = cpu_choice(path, config, flags)
    except ModelLoadError as error:
        return str(error)
    if config.engine != "auto":
        why = f"FCN_ENGINE={config.engine}"
    elif engine == "openvino":
        why = f"this processor has {FASTER_IN_OPENVINO.get(precision, 'bf16')}"
    else:
        why = f"OpenVINO pays with {' or '.join(FASTER_IN_OPENVINO.values())}"
    if config.precision != "auto":
        what = f"FCN_PRECISION={config.precision}"
    elif precision == "int8":
        what = f"{INT8_FILE} is there, and instructions for it"
    elif not multiplies_int8(flags):
        what = "no instructions for 8 bits"
    else:
        what = "chosen by the processor" if precision == "bf16" else f"there is no {INT8_FILE}"
    return f"{engine} ({why}), {precision} ({what})"


def _advice(
    settings: Settings, files: list[Path], flags: frozenset[str], on_gpu: bool
) -> Iterator[str]:
    missing = [name for name in ("uvloop", "openvino") if name not in " ".join(_versions())]
    if "uvloop" in missing and platform.system() != "Windows":
        yield "pip install uvloop: a faster event loop"
    if available_memory_bytes() < LEAST_BYTES:
        yield "give it 768 MiB of memory or more, or large images may end it"
    for path in files:
        kind, file = ("fp16", FP16_FILE) if on_gpu else ("int8", INT8_FILE)
        if (on_gpu or multiplies_int8(flags)) and not path.with_name(file).is_file():
            yield f"fcn quantize --to {kind} {path}: this machine has instructions for it"
    if on_gpu:
        return
    if _gpu(settings.segmenter_config())[0].endswith("built for the CPU"):
        yield "pip install 'fcn-serve[gpu]' in place of [cpu]: the GPU would be used"
    if "openvino" in missing and not flags.isdisjoint(FASTER_IN_OPENVINO.values()):
        yield "pip install 'fcn-serve[cpu]': OpenVINO is faster on this processor"
    if "openvino" not in missing and not flags.isdisjoint({*BF16_FLAGS}):
        if settings.engine == "auto" and settings.settings_file is None:
            yield "fcn tune: OpenVINO may be faster here, for more memory"
    elif settings.settings_file is None:
        yield "fcn tune: measures threads and engines, and writes a settings file"
    quota = cpu_quota()
    if quota is not None and quota % 1:
        yield f"a whole number of cores in place of {quota:g}: threads wait for the rest of one"
