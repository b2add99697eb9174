"""Memory of the host that a GPU reads and writes by itself: page-locked, for one device.

ONNX Runtime's Python interface has no name for such memory: `OrtValue` refuses "cuda_pinned". But
CUDA knows a page-locked address when it sees one, whoever allocated it, and copies to and from it
directly, without a buffer of its own between.
Source: docs.nvidia.com/cuda/cuda-runtime-api/api-sync-behavior.html
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]

_PORTABLE: Final = 1
"""cudaHostAllocPortable: page-locked for every GPU of the process, not only the present one."""
_log = logging.getLogger(__name__)


class Place(Protocol):
    """Where a session's tensors are, by the names ONNX Runtime has for it: the device abstraction.

    On "cpu" all of it works as on "cuda", without a GPU.
    """

    device: str
    index: int

    def use(self) -> None:
        """Makes the device the calling thread's own."""
        ...

    def host(self, nbytes: int) -> UInt8Array:
        """uint8 [nbytes] on the host, not initialised, in memory that the device reads fast."""
        ...


class Cpu:
    device = "cpu"
    index = 0

    def use(self) -> None:
        pass

    def host(self, nbytes: int) -> UInt8Array:
        return np.empty(nbytes, np.uint8)


class Cuda:
    device = "cuda"

    def __init__(
        self, index: int, cuda_major: int, load: Callable[[str], Any] = ctypes.CDLL
    ) -> None:
        """cuda_major: of the CUDA runtime that ONNX Runtime has loaded."""
        self.index = index
        name = f"libcudart.so.{cuda_major}"
        try:
            self._runtime = load(name)
        except OSError as error:
            # ONNX Runtime needs it too, so it is there. If not, only speed is lost.
            _log.warning("%s cannot be loaded, so copies to the GPU take longer: %s", name, error)
            self._runtime = None

    def use(self) -> None:
        # Copies go to the thread's own device, and on a thread that has none to GPU 0, where a
        # context would take some hundred MB.
        if self._runtime is not None:
            self._runtime.cudaSetDevice(self.index)

    def host(self, nbytes: int) -> UInt8Array:
        if self._runtime is None:
            return np.empty(nbytes, np.uint8)
        self.use()
        address = ctypes.c_void_p()
        status = self._runtime.cudaHostAlloc(
            ctypes.byref(address), ctypes.c_size_t(nbytes), ctypes.c_uint(_PORTABLE)
        )
        if status or not address.value:
            _log.warning("%d bytes of page-locked memory refused: CUDA error %d", nbytes, status)
            return np.empty(nbytes, np.uint8)
        block = (ctypes.c_uint8 * nbytes).from_address(address.value)
        # Every array made of it holds on to `block`, so nobody reads what has been freed.
        free = weakref.finalize(block, self._runtime.cudaFreeHost, ctypes.c_void_p(address.value))
        free.atexit = False  # the driver may be gone by then, and takes all of it back anyway
        return np.frombuffer(memoryview(block), np.uint8)
