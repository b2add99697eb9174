"""ONNX Runtime is told what to do on pretended GPUs, and errors say why it does not start.

On a real one, tests/e2e/test_on_gpu.py compares the labels, and bench.gpu measures.
"""

from __future__ import annotations

import ctypes
import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from service.config import SegmenterConfig
from service.core.engines import cuda
from service.core.engines.cuda import choose_devices
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.types import Network
from service.errors import ModelLoadError
from tests import tiny_models
from tests.drawing import street
from tests.unit.core.pretend_gpu import CPU, CUDA, TENSORRT, pretend

# As they are before a test pretends.
MISSING_LIBRARY = cuda._missing_library
COUNT_GPUS = cuda.count_gpus


def open_on(path: Path, provider: str, **options: object) -> Network:
    return open_onnx_runtime(path, provider=provider, threads=1, gpu=SegmenterConfig(**options))  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_models.write_model(tmp_path)


# Where it does not start


def test_an_unknown_provider_is_refused(path: Path) -> None:
    says = "provider 'tpu': choose one of auto, cpu, cuda, tensorrt"
    with pytest.raises(ModelLoadError, match=says):
        open_on(path, "tpu")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_build_without_it_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    pretend(monkeypatch, build=(CPU,))
    says = f"does not run on {provider} here: this build of ONNX Runtime lacks it .install the gpu"
    with pytest.raises(ModelLoadError, match=says):
        open_on(path, provider)


def test_auto_on_a_build_without_cuda_is_the_cpu_and_silent(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretended = pretend(monkeypatch, build=(CPU,))
    assert open_on(path, "auto").provider == "cpu"
    assert not pretended.opened
    assert not caplog.records


def test_no_gpu_is_refused_with_the_drivers_reason(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretended = pretend(monkeypatch, gpus=ModelLoadError("there is no NVIDIA driver"))
    says = "on cuda here: there is no NVIDIA driver: mend that, or set FCN_PROVIDER=cpu$"
    with pytest.raises(ModelLoadError, match=says):
        open_on(path, "cuda")
    with caplog.at_level(logging.WARNING):
        assert open_on(path, "auto").provider == "cpu"
    assert "runs on the CPU, not on a GPU: there is no NVIDIA driver" in caplog.text
    assert not pretended.opened


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_silently_falls_back_is_refused(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    provider: str,
) -> None:
    """A GPU build does so without its libraries: the session opens, elsewhere."""
    complaint = "Failed to load libcublasLt.so.13: no such file\nPlease follow https://"
    pretend(monkeypatch, starts=(CUDA,) if provider == "tensorrt" else (), complaint=complaint)
    with pytest.raises(ModelLoadError, match="here: ONNX Runtime takes .* instead of ") as caught:
        open_on(path, provider)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""  # stdout is for the ready line


def test_what_the_loader_misses_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def load(name: str) -> None:
        loaded.append(Path(name).name)
        missing = name.endswith("tensorrt.so")
        raise OSError("libnvinfer.so.10: no such file" if missing else "undefined symbol: Provider")

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert MISSING_LIBRARY("tensorrt") == "libnvinfer.so.10: no such file"
    assert loaded == [f"libonnxruntime_providers_{name}.so" for name in ("cuda", "tensorrt")]
    assert MISSING_LIBRARY("cuda") == ""


def test_auto_that_falls_back_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretended = pretend(monkeypatch, starts=())
    with caplog.at_level(logging.WARNING):
        session = open_on(path, "auto")
    assert (session.provider, session.instead_of) == ("cpu", "cuda")
    assert len(pretended.opened) == 1
    assert "runs on the CPU, not on a GPU: ONNX Runtime takes CPUExecutionProvider" in caplog.text
    rgb = street()[None]
    assert (session.instances[0].run(rgb) == tiny_models.expected_label_map(rgb)).all()


def test_a_file_that_breaks_its_contract_never_reaches_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = pretend(monkeypatch)
    path = tiny_models.write_file(tiny_models.build(), tmp_path)
    with pytest.raises(ModelLoadError, match="has no contract"):
        open_on(path, "cuda")
    assert not pretended.opened


@pytest.mark.parametrize(
    ("pretended", "says"),
    [
        (
            {"fails": RuntimeError("CUDA failure 2: no memory\nand a trace")},
            "CUDA failure 2: no memory",
        ),
        ({"starts": (), "missing": "libcudnn.so.9: cannot open"}, "libcudnn.so.9: cannot open"),
        ({"gpus": 1, "devices": (5,)}, "FCN_DEVICES names GPU 5 and .* sees 1, counted from 0"),
    ],
)
def test_the_reason_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, pretended: dict[str, Any], says: str
) -> None:
    devices = pretended.pop("devices", ())
    pretend(monkeypatch, **pretended)
    with pytest.raises(ModelLoadError, match=f"here: {says}: mend that"):
        open_on(path, "cuda", devices=devices)
    assert open_on(path, "auto", devices=devices).provider == "cpu"


# The driver


class Driver:
    """libcuda, as far as it is asked. init: what cuInit returns."""

    def __init__(self, version: int = 13000, init: int = 0, gpus: int = 2) -> None:
        self._version, self._init, self._gpus = version, init, gpus

    def __call__(self, name: str) -> Driver:
        assert name == "libcuda.so.1"
        return self

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self._version
        return 0

    def cuInit(self, flags: int) -> int:
        return self._init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self._gpus
        return 0

    def cuGetErrorName(self, status: int, name: Any) -> int:
        name._obj.value = {100: b"CUDA_ERROR_NO_DEVICE"}.get(status)
        return 0


def missing(name: str) -> Driver:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (missing, r"no NVIDIA driver \(libcuda.so.1 cannot be loaded\)"),
        (Driver(version=12040), "knows CUDA 12.4 at most and .* needs CUDA 13"),
        (Driver(init=100), "fails with CUDA_ERROR_NO_DEVICE"),
        (Driver(init=803), "fails with error 803"),
        (Driver(gpus=0), "shows no GPU to this process"),
    ],
)
def test_what_is_wrong_with_the_driver_is_said(load: Callable[[str], Driver], says: str) -> None:
    with pytest.raises(ModelLoadError, match=says):
        COUNT_GPUS(13, load)


def test_the_driver_is_asked_for_its_gpus() -> None:
    assert COUNT_GPUS(13, Driver()) == 2
    # An older driver does for an older build.
    assert COUNT_GPUS(12, Driver(version=12040)) == 2
    assert COUNT_GPUS(None, Driver(version=11000)) == 2


def test_gpus_are_chosen_by_number() -> None:
    assert choose_devices(2, ()) == [0, 1]
    assert choose_devices(2, (1,)) == [1]
    assert choose_devices(2, (1, 0)) == [1, 0]
    with pytest.raises(
        ModelLoadError, match="FCN_DEVICES names GPU 2 and this process sees 2, counted"
    ):
        choose_devices(2, (0, 2))


# What ONNX Runtime is told


def test_sessions_are_opened_on_every_gpu_without_a_fallback(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = pretend(monkeypatch)
    session = open_on(path, "cuda", instances=2)
    assert [opened.told["device_id"] for opened in pretended.opened] == ["0", "1", "0", "1"]
    for opened in pretended.opened:
        assert [name for name, _ in opened.providers] == [CUDA, CPU]
        assert opened.fallback == 0
        assert not opened.options.enable_mem_pattern
    assert not any(instance.full_device for instance in session.instances)
    images = [street(24 + i, 32)[None] for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda instance, x: instance.run(x), session.instances, images)
        for image, label_maps in zip(images, answers, strict=True):
            assert (label_maps == tiny_models.expected_label_map(image)).all()
    assert [opened.runs for opened in pretended.opened] == [1, 1, 1, 1]


def test_cuda_is_told_what_variable_shapes_need(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = pretend(monkeypatch)
    open_on(path, "cuda", instances=1, devices=(1,))
    assert [opened.told for opened in pretended.opened] == [
        {
            "device_id": "1",
            "cudnn_conv_algo_search": "HEURISTIC",
            "cudnn_conv_use_max_workspace": "1",
            "arena_extend_strategy": "kSameAsRequested",
            "prefer_nhwc": "1",
        }
    ]


def test_given_options_go_over_the_services_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = pretend(monkeypatch, gpus=1)
    given = {"cuda": {"prefer_nhwc": "0", "use_tf32": "0"}, "tensorrt": {"trt_fp16_enable": "1"}}
    open_on(path, "tensorrt", instances=4, gpu_mem_limit_bytes=1 << 32, provider_options=given)
    (tensorrt, told), (cuda_name, cuda_told), (last, _) = pretended.opened[0].providers
    assert (tensorrt, cuda_name, last) == (TENSORRT, CUDA, CPU)
    assert told == {"device_id": "0", "trt_fp16_enable": "1"}
    assert (cuda_told["prefer_nhwc"], cuda_told["use_tf32"]) == ("0", "0")
    assert cuda_told["gpu_mem_limit"] == str(1 << 30)  # all sessions share it


@pytest.mark.parametrize(("precision", "fp16"), [("fp32", "0"), ("fp16", "1"), ("int8", "0")])
def test_tensorrt_rounds_only_what_was_exported_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, fp16: str
) -> None:
    pretended = pretend(monkeypatch, gpus=1)
    contract = dataclasses.replace(tiny_models.contract(), precision=precision)
    path = tiny_models.write_model(tmp_path, model_contract=contract)
    assert open_on(path, "tensorrt", instances=1).provider == "tensorrt"
    assert pretended.opened[0].told["trt_fp16_enable"] == fp16


def test_auto_takes_cuda_and_never_tensorrt(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine takes minutes to build; whoever wants one asks for it."""
    pretended = pretend(monkeypatch)
    assert open_on(path, "auto").provider == "cuda"
    assert {opened.providers[0][0] for opened in pretended.opened} == {CUDA}


def keeping(folder: Path) -> dict[str, dict[str, str]]:
    return {"tensorrt": {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}}


def test_engines_are_kept_for_a_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network trained again has the same graph, by which ONNX Runtime would know its engine."""
    pretended = pretend(monkeypatch, gpus=1)
    cache = tmp_path / "cache"
    for version, bias in ((1, 0.0), (2, 9.0), (3, 0.0)):
        path = tiny_models.write_model(tmp_path / "m", version=version, bias=(bias, 0.0, 0.0))
        open_on(path, "tensorrt", instances=1, provider_options=keeping(cache))
    folders = [opened.told["trt_engine_cache_path"] for opened in pretended.opened]
    assert folders[0] == folders[2] != folders[1]
    assert all(Path(folder).parent == cache and Path(folder).is_dir() for folder in folders)
    assert ort.__version__ in folders[0]


def test_a_cache_that_cannot_be_written_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    (tmp_path / "file").write_text("")
    says = "trt_engine_cache_path '.*file' in FCN_PROVIDER_OPTIONS cannot be written to"
    with pytest.raises(ModelLoadError, match=says):
        open_on(path, "tensorrt", provider_options=keeping(tmp_path / "file"))


@pytest.mark.parametrize(
    ("on_cpu", "warning"),
    [
        ({"ArgMax", "Cast"}, "1 nodes run on the CPU, with copies there and back: 1 ArgMax"),
        ({"Cast"}, ""),  # arithmetic of sizes belongs there
    ],
)
def test_nodes_that_fell_back_to_the_cpu_are_reported(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    on_cpu: set[str],
    warning: str,
) -> None:
    pretend(monkeypatch, gpus=1, on_cpu=frozenset(on_cpu))
    with caplog.at_level(logging.WARNING):
        open_on(path, "cuda", instances=1)
    assert warning in caplog.text
    assert bool(caplog.records) is bool(warning)
