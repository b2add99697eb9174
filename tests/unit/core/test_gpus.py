from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from service.core.engines.gpus import Gpu, NoGpu, choose, visible_gpus

CARDS = [("NVIDIA H200", 150 << 30), ("NVIDIA L4", 24 << 30)]


class Driver:
    """libcuda, as far as it is asked. init: what cuInit returns."""

    def __init__(
        self, version: int = 13000, init: int = 0, cards: list[tuple[str, int]] = CARDS
    ) -> None:
        self._version, self._init, self._cards = version, init, cards

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self._version
        return 0

    def cuInit(self, flags: int) -> int:
        return self._init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self._cards)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = 70 + index
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: ctypes.c_int) -> int:
        name.value = self._cards[device.value - 70][0].encode()
        return 0 if length > len(name.value) else 1

    def cuDeviceTotalMem_v2(self, size: Any, device: ctypes.c_int) -> int:
        size._obj.value = self._cards[device.value - 70][1]
        return 0

    def cuGetErrorName(self, status: int, name: Any) -> int:
        name._obj.value = {100: b"CUDA_ERROR_NO_DEVICE"}.get(status)
        return 0


def loads(driver: Driver) -> Callable[[str], Driver]:
    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        return driver

    return load


def missing(name: str) -> Driver:
    raise OSError(f"{name}: cannot open shared object file")


def test_the_driver_is_asked_for_its_gpus() -> None:
    assert visible_gpus(13, loads(Driver())) == [
        Gpu(0, "NVIDIA H200", 150 << 30),
        Gpu(1, "NVIDIA L4", 24 << 30),
    ]


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (missing, r"no NVIDIA driver \(libcuda.so.1 cannot be loaded\)"),
        (loads(Driver(version=12040)), "knows CUDA 12.4 at most and .* needs CUDA 13"),
        (loads(Driver(init=100)), "fails with CUDA_ERROR_NO_DEVICE"),
        (loads(Driver(init=803)), "fails with error 803"),
        (loads(Driver(cards=[])), "shows no GPU to this process"),
    ],
)
def test_what_is_wrong_is_said(load: Callable[[str], Driver], says: str) -> None:
    with pytest.raises(NoGpu, match=says):
        visible_gpus(13, load)


def test_an_older_driver_does_for_an_older_build() -> None:
    assert len(visible_gpus(12, loads(Driver(version=12040)))) == 2
    assert len(visible_gpus(None, loads(Driver(version=11000)))) == 2


def test_gpus_are_chosen_by_number() -> None:
    gpus = visible_gpus(13, loads(Driver()))
    assert choose(gpus, ()) == gpus
    assert choose(gpus, (1,)) == gpus[1:]
    assert choose(gpus, (1, 0)) == gpus[::-1]
    with pytest.raises(NoGpu, match="FCN_DEVICES names GPU 2 and this process sees 2, counted"):
        choose(gpus, (0, 2))
