"""`Session` on pretended GPUs: what ONNX Runtime is told, and what is said when it does not start.

On a real one all of it is measured by bench.gpu.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import logging
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from model.contract import METADATA_KEY
from service.core.engines import gpu_sessions
from service.core.engines.gpus import GpuOptions, NoGpu
from service.core.engines.onnx_runtime import Session
from service.errors import ModelLoadError
from tests import tiny_models
from tests.drawing import street
from tests.unit.core.pretend_gpu import CPU, CUDA, GPUS, TENSORRT, pretend


def open_on(path: Path, provider: str, **options: object) -> Session:
    return Session(path, provider=provider, threads=1, gpu=GpuOptions(**options))  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_models.write_model(tmp_path)


def test_an_unknown_provider_is_refused(path: Path) -> None:
    says = "provider 'tpu': choose one of auto, cpu, cuda, tensorrt"
    with pytest.raises(ModelLoadError, match=says):
        open_on(path, "tpu")


@pytest.mark.parametrize(("provider", "called"), [("cuda", "CUDA"), ("tensorrt", "TensorRT")])
def test_a_build_without_it_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, provider: str, called: str
) -> None:
    pretend(monkeypatch, build=(CPU,))
    says = f"^{called} was asked for but this build of ONNX Runtime has none: install the gpu extra"
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
    pretended = pretend(monkeypatch, gpus=NoGpu("there is no NVIDIA driver"))
    says = (
        "^CUDA was asked for but no GPU can be used: there is no NVIDIA driver: mend that, or set "
        "FCN_PROVIDER=cpu$"
    )
    with pytest.raises(ModelLoadError, match=says):
        open_on(path, "cuda")
    with caplog.at_level(logging.WARNING):
        assert open_on(path, "auto").provider == "cpu"
    assert "run on the CPU, not on a GPU: there is no NVIDIA driver" in caplog.text
    assert not pretended.opened


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_silently_falls_back_is_refused(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    provider: str,
) -> None:
    """As a GPU build does without its libraries: the session opens, elsewhere."""
    complaint = "Failed to load libcublasLt.so.13: no such file\nPlease follow https://"
    pretend(monkeypatch, starts=(CUDA,) if provider == "tensorrt" else (), complaint=complaint)
    says = "does not start on this machine.*: ONNX Runtime takes .* instead of .*: check the driver"
    with pytest.raises(ModelLoadError, match=says) as caught:
        open_on(path, provider)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""  # stdout is for the ready line


def test_the_library_that_is_missing_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, starts=(), missing="libcudnn.so.9: cannot open shared object file")
    with pytest.raises(ModelLoadError, match="elsewhere: libcudnn.so.9: cannot open shared"):
        open_on(path, "cuda")


def test_what_the_loader_misses_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str) -> None:
        loaded.append(Path(name).name)
        missing = name.endswith("tensorrt.so")
        raise OSError("libnvinfer.so.10: no such file" if missing else "undefined symbol: Provider")

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert gpu_sessions._missing("tensorrt") == "libnvinfer.so.10: no such file"
    assert loaded == [f"libonnxruntime_providers_{name}.so" for name in ("cuda", "tensorrt")]
    assert gpu_sessions._missing("cuda") == ""


def test_auto_that_falls_back_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretended = pretend(monkeypatch, starts=())
    with caplog.at_level(logging.WARNING):
        session = open_on(path, "auto")
    assert session.provider == "cpu"
    assert len(pretended.opened) == 1
    assert "runs on the CPU, not on a GPU: ONNX Runtime takes CPUExecutionProvider" in caplog.text
    rgb = street()[None]
    assert (session.run(rgb) == tiny_models.expected_label_map(rgb)).all()


def test_what_opening_raises_is_the_reason(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, fails=RuntimeError("CUDA failure 2: out of memory\nand a long trace"))
    with pytest.raises(ModelLoadError, match="elsewhere: CUDA failure 2: out of memory: check"):
        open_on(path, "cuda")
    assert open_on(path, "auto").provider == "cpu"


def test_auto_takes_cuda_and_never_tensorrt(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine takes minutes to build; whoever wants one asks for it."""
    pretended = pretend(monkeypatch)
    session = open_on(path, "auto")
    assert session.provider == "cuda"
    assert {opened.providers[0][0] for opened in pretended.opened} == {CUDA}


def test_sessions_are_opened_on_every_gpu_without_a_fallback(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = pretend(monkeypatch)
    session = open_on(path, "cuda", instances=2)
    assert [opened.told["device_id"] for opened in pretended.opened] == ["0", "1", "0", "1"]
    assert pretended.places == [0, 1, 0, 1]
    for opened in pretended.opened:
        assert [name for name, _ in opened.providers] == [CUDA, CPU]
        assert opened.fallback == 0
        assert not opened.options.enable_mem_pattern
    assert len(session.instances) == 4
    assert not any(instance.full_device for instance in session.instances)
    pictures = [street(24 + i, 32)[None] for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda instance, x: instance.run(x), session.instances, pictures)
        for picture, label_maps in zip(pictures, answers, strict=True):
            assert (label_maps == tiny_models.expected_label_map(picture)).all()
    assert [len(opened.graphs) for opened in pretended.opened] == [1, 1, 1, 1]


def test_some_gpus_may_be_chosen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = pretend(monkeypatch)
    open_on(path, "cuda", devices=(1,), instances=1)
    assert [opened.told["device_id"] for opened in pretended.opened] == ["1"]
    with pytest.raises(ModelLoadError, match="no GPU can be used: FCN_DEVICES names GPU 5"):
        open_on(path, "cuda", devices=(5,))


def test_options_reach_the_provider(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = pretend(monkeypatch, gpus=GPUS[:1])
    open_on(path, "cuda", tf32=False, memory_limit_bytes=1 << 30, graphs=True)
    told = pretended.opened[0].told
    assert (told["use_tf32"], told["gpu_mem_limit"], told["enable_cuda_graph"]) == (
        "0",
        str(1 << 29),
        "1",
    )


def test_logits_come_from_the_same_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = pretend(monkeypatch, gpus=GPUS[:1])
    session = open_on(tiny_models.write_model(tmp_path, logits=True), "cuda", graphs=True)
    assert len(session.instances) == 2
    rgb = street()[None]
    label_maps, logits = session.instances[1].run_with_logits(rgb)
    assert (label_maps == tiny_models.expected_label_map(rgb)).all()
    assert (logits == tiny_models.expected_logits(rgb)).all()
    assert [graph for graph, _ in pretended.opened[1].graphs] == ["-1"]


def test_instances_bring_their_own_way_to_stack(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    run = open_on(path, "cuda").instances[0]
    images = [street(8, 9), street(8, 9)]
    first = run.stack(images)
    assert np.shares_memory(first, run.stack(images)), "memory that is used again"
    assert (run.run(first) == tiny_models.expected_label_map(np.stack(images))).all()


@pytest.mark.parametrize("graphs", [False, True])
def test_the_memory_is_free_as_soon_as_nobody_uses_the_session(
    path: Path, monkeypatch: pytest.MonkeyPatch, graphs: bool
) -> None:
    pretend(monkeypatch, gpus=GPUS[:1])
    session = open_on(path, "cuda", graphs=graphs)
    run = session.instances[0]
    run.warm_up(street(8, 8)[None])
    left = weakref.ref(run)
    gc.disable()
    try:
        del session, run
        deadline = time.monotonic() + 5
        while left() is not None and time.monotonic() < deadline:
            time.sleep(0.01)  # the thread with the graphs lets go of its last run
        assert left() is None
    finally:
        gc.enable()


def test_nodes_that_are_on_the_cpu_are_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, gpus=GPUS[:1], on_cpu=frozenset({"ArgMax", "Cast"}))
    with caplog.at_level(logging.WARNING):
        open_on(path, "cuda", instances=1)
    assert "1 nodes run on the CPU, with copies there and back: 1 ArgMax" in caplog.text


def test_all_on_the_gpu_is_not_worth_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend(monkeypatch, on_cpu=frozenset({"Cast"}))
    with caplog.at_level(logging.WARNING):
        open_on(path, "cuda")
    assert not caplog.records


def test_a_file_that_breaks_its_contract_never_reaches_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = pretend(monkeypatch)
    path = tiny_models.write_file(tiny_models.build(), tmp_path)
    with pytest.raises(ModelLoadError, match="has no contract"):
        open_on(path, "cuda")
    assert not pretended.opened


def test_tensorrt_takes_its_sizes_and_cuda_the_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = pretend(monkeypatch, gpus=GPUS[:1])
    session = open_on(
        path, "tensorrt", instances=1, sizes=((24, 32), (16, 40)), max_batch=2, graphs=True
    )
    assert session.provider == "tensorrt"
    cuda, tensorrt = pretended.opened
    assert [name for name, _ in cuda.providers] == [CUDA, CPU]
    assert [name for name, _ in tensorrt.providers] == [TENSORRT, CUDA, CPU]
    assert tensorrt.told["trt_profile_opt_shapes"] == "image:2x24x32x3"
    assert all(
        "enable_cuda_graph" not in told for _, told in (*cuda.providers, *tensorrt.providers)
    )
    run = session.instances[0]
    for images, on_tensorrt, on_cuda in (
        ([street(20, 36)], 1, 0),
        ([street(20, 36)] * 2, 2, 0),
        ([street(20, 36)] * 3, 2, 1),
        ([street(20, 41)], 2, 2),
    ):
        stacked = run.stack(images)
        assert (run.run(stacked) == tiny_models.expected_label_map(np.stack(images))).all()
        assert (len(tensorrt.graphs), len(cuda.graphs)) == (on_tensorrt, on_cuda)


def test_tensorrt_without_sizes_is_built_for_an_ordinary_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = pretend(monkeypatch, gpus=GPUS[:1])
    open_on(path, "tensorrt", instances=1)
    told = pretended.opened[1].told
    assert told["trt_profile_min_shapes"] == "image:1x256x256x3"
    assert told["trt_profile_max_shapes"] == "image:8x256x256x3"


def test_engines_are_kept_for_a_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network trained again has the same graph, by which ONNX Runtime would know its engine."""
    pretended = pretend(monkeypatch, gpus=GPUS[:1])
    cache = tmp_path / "cache"
    for version, bias in ((1, 0.0), (2, 9.0), (3, 0.0)):
        path = tiny_models.write_model(tmp_path / "m", version=version, bias=(bias, 0.0, 0.0))
        open_on(path, "tensorrt", instances=1, tensorrt_cache=cache)
    folders = [
        opened.told["trt_engine_cache_path"]
        for opened in pretended.opened
        if opened.providers[0][0] == TENSORRT
    ]
    assert folders[0] == folders[2] != folders[1]
    assert all(Path(folder).parent == cache and Path(folder).is_dir() for folder in folders)
    assert ort.__version__ in folders[0]


def test_a_cache_that_cannot_be_written_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelLoadError, match="FCN_TENSORRT_CACHE '.*file' cannot be written to"):
        open_on(path, "tensorrt", tensorrt_cache=tmp_path / "file")


def test_the_contract_decides_on_fp16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = pretend(monkeypatch, gpus=GPUS[:1])
    contract = dataclasses.replace(tiny_models.contract(), precision="fp16")
    model = tiny_models.build(metadata={METADATA_KEY: contract.to_json()})
    open_on(tiny_models.write_file(model, tmp_path), "tensorrt", instances=1)
    assert pretended.opened[1].told["trt_fp16_enable"] == "1"
