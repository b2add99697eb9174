from __future__ import annotations

import ctypes
import gc
import logging
from typing import Any

import numpy as np
import pytest

from service.core.engines.pinned import Cuda


class Runtime:
    """libcudart, as far as it is asked. refuses: what cudaHostAlloc returns."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses = refuses
        self.device: int | None = None
        self.flags: int | None = None
        self.held: dict[int, Any] = {}

    def cudaSetDevice(self, index: int) -> int:
        self.device = index
        return 0

    def cudaHostAlloc(self, address: Any, nbytes: ctypes.c_size_t, flags: ctypes.c_uint) -> int:
        assert self.device is not None
        if self.refuses:
            return self.refuses
        memory = ctypes.create_string_buffer(nbytes.value)
        address._obj.value = ctypes.addressof(memory)
        self.held[ctypes.addressof(memory)] = memory
        self.flags = flags.value
        return 0

    def cudaFreeHost(self, address: ctypes.c_void_p) -> int:
        del self.held[address.value or 0]
        return 0


def place(runtime: Runtime, index: int = 1) -> Cuda:
    def load(name: str) -> Runtime:
        assert name == "libcudart.so.13"
        return runtime

    return Cuda(index, 13, load)


def test_memory_is_cudas_own_for_the_gpu_in_use() -> None:
    runtime = Runtime()
    memory = place(runtime).host(4096)
    assert memory.shape == (4096,)
    assert memory.dtype == np.uint8
    assert list(runtime.held) == [memory.ctypes.data]
    assert (runtime.device, runtime.flags) == (1, 1)
    memory[:] = 7
    assert runtime.held[memory.ctypes.data].raw == b"\x07" * 4096


def test_memory_goes_back_with_the_last_array_of_it() -> None:
    runtime = Runtime()
    memory = place(runtime).host(64)
    view = memory[8:].reshape(7, 8)
    del memory
    gc.collect()
    assert len(runtime.held) == 1
    del view
    gc.collect()
    assert not runtime.held


def test_refused_memory_is_replaced_by_ordinary(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        memory = place(Runtime(refuses=2)).host(64)
    assert memory.shape == (64,)
    assert "64 bytes of page-locked memory refused: CUDA error 2" in caplog.text


def test_without_the_library_all_works_on(caplog: pytest.LogCaptureFixture) -> None:
    def load(name: str) -> Any:
        raise OSError("no such file")

    with caplog.at_level(logging.WARNING):
        cuda = Cuda(0, 13, load)
    cuda.use()
    assert cuda.host(8).shape == (8,)
    assert "libcudart.so.13 cannot be loaded" in caplog.text
