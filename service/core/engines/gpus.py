"""Which GPUs this process may use, as the driver says, and how networks are to use them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from service.config import ProviderOptions

INSTANCES: Final = 2
"""Sessions of a model on each GPU: while one copies, the other computes."""
MAX_BATCH: Final = 8
"""Pictures of one inference on a GPU."""
_DRIVER: Final = "libcuda.so.1"


class NoGpu(Exception):
    """No GPU can be used; the message says why, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """index: among those this process sees (`CUDA_VISIBLE_DEVICES`), which may be parts (MIG)."""

    index: int
    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """How networks run on GPUs.

    devices: indexes of the GPUs; empty for all that are visible. instances: sessions of a model on
    each. memory_limit_bytes: of each GPU, for all sessions of one model; None for no limit.
    provider_options: over the service's own. tf32: float32 products may be rounded to 10 bits of
    mantissa. nhwc: prefer kernels that take channels last. graphs: replay the launches of warmed-up
    shapes as CUDA graphs.
    tensorrt_cache: folder for TensorRT's engines and timings; None: built anew at every start.
    sizes: (height, width) that TensorRT's engines take, from the smallest to the largest.
    max_batch: pictures of one inference.
    """

    devices: tuple[int, ...] = ()
    instances: int = INSTANCES
    memory_limit_bytes: int | None = None
    provider_options: ProviderOptions = field(default_factory=dict)
    tf32: bool = True
    nhwc: bool = True
    graphs: bool = False
    tensorrt_cache: Path | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    max_batch: int = MAX_BATCH


def visible_gpus(
    cuda_major: int | None = None, load: Callable[[str], Any] = ctypes.CDLL
) -> list[Gpu]:
    """At least one, from the driver's own library, whose answer precedes any CUDA library.

    cuda_major: the CUDA version that the driver must know; None for any.

    Raises: NoGpu.
    """
    try:
        driver = load(_DRIVER)
    except OSError as error:
        raise NoGpu(f"there is no NVIDIA driver ({_DRIVER} cannot be loaded)") from error
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))  # 1000 * major + 10 * minor
    if cuda_major is not None and version.value // 1000 < cuda_major:
        known = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise NoGpu(
            f"the NVIDIA driver knows CUDA {known} at most and this build of ONNX Runtime needs "
            f"CUDA {cuda_major}"
        )
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        raise NoGpu(f"the NVIDIA driver fails with {_error_name(driver, status)}")
    if not count.value:
        raise NoGpu("the NVIDIA driver shows no GPU to this process")
    return [_gpu(driver, index) for index in range(count.value)]


def choose(gpus: list[Gpu], devices: tuple[int, ...]) -> list[Gpu]:
    """Those of `devices`, in that order; all when empty. Raises: NoGpu."""
    if wrong := [index for index in devices if index >= len(gpus)]:
        raise NoGpu(
            f"FCN_DEVICES names GPU {wrong[0]} and this process sees {len(gpus)}, counted from 0"
        )
    return [gpus[index] for index in devices] if devices else gpus


def _gpu(driver: Any, index: int) -> Gpu:
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    size = ctypes.c_size_t()
    status = (
        driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    )
    if status:
        raise NoGpu(f"the NVIDIA driver fails with {_error_name(driver, status)}")
    return Gpu(index, name.value.decode(errors="replace"), size.value)


def _error_name(driver: Any, status: int) -> str:
    """`CUDA_ERROR_NO_DEVICE` of 100."""
    name = ctypes.c_char_p()
    driver.cuGetErrorName(status, ctypes.byref(name))
    return name.value.decode() if name.value else f"error {status}"
