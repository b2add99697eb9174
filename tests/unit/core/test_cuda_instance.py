"""How batches go through one session on a pretended GPU."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from service.config import SegmenterConfig
from service.core.engines import cuda
from service.core.engines.cuda import CudaInstance
from service.core.engines.onnx_runtime import open_onnx_runtime
from service.core.types import UInt8Array
from tests import tiny_models
from tests.drawing import street
from tests.unit.core.pretend_gpu import pretend
from tests.unit.core.test_onnx_runtime import write_with_sizes


def batch(*shape: int, seed: int = 0) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def instance_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, logits: bool = False
) -> CudaInstance:
    pretend(monkeypatch, gpus=1)
    path = tiny_models.write_model(tmp_path, logits=logits)
    session = open_onnx_runtime(path, provider="cuda", threads=1, gpu=SegmenterConfig(instances=1))
    (instance,) = session.instances
    assert isinstance(instance, CudaInstance)
    return instance


def test_label_maps_are_those_of_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = instance_of(tmp_path, monkeypatch)
    generator = np.random.default_rng(1)
    kept = []
    for seed in range(60):
        shape = tuple(int(generator.integers(1, most)) for most in (5, 40, 40))
        for pixels in (batch(*shape, seed=seed), batch(*shape, seed=seed + 1000)):
            kept.append((pixels, instance.run(pixels)))
    for pixels, label_maps in kept:  # also those whose buffers were used again since
        assert label_maps.dtype == np.uint8
        assert (label_maps == tiny_models.expected_label_map(pixels)).all()


def test_views_of_the_callers_arrays_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = instance_of(tmp_path, monkeypatch)
    image = batch(24, 24)[::-1, ::2]
    assert (instance.run(image[None])[0] == tiny_models.expected_label_map(image)).all()


def test_logits_come_from_the_same_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = instance_of(tmp_path, monkeypatch, logits=True)
    rgb = street()[None]
    label_maps, logits = instance.run_with_logits(rgb)
    assert (label_maps == tiny_models.expected_label_map(rgb)).all()
    assert (logits == tiny_models.expected_logits(rgb)).all()


def test_a_network_that_wants_sizes_is_told_those_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, gpus=1)
    network = open_onnx_runtime(write_with_sizes(tmp_path), provider="cuda", threads=1)
    for seed in range(2):
        pixels = batch(2, 9, 13, seed=seed)
        assert (network.instances[0].run(pixels) == tiny_models.expected_label_map(pixels)).all()


def test_buffers_of_the_shapes_used_last_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = instance_of(tmp_path, monkeypatch)
    monkeypatch.setattr(cuda, "MAX_SHAPES", 3)
    for width in (8, 9, 10, 8, 11):  # 9 has to go
        instance.run(batch(1, 8, width))
    assert list(instance._buffers) == [(1, 8, 10), (1, 8, 8), (1, 8, 11)]
    kept = instance._buffers[1, 8, 8][0].data_ptr()
    instance.run(batch(1, 8, 8))
    assert instance._buffers[1, 8, 8][0].data_ptr() == kept


def test_buffers_on_the_device_are_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = instance_of(tmp_path, monkeypatch)
    monkeypatch.setattr(cuda, "MAX_BUFFER_BYTES", 4 * 8 * 100)
    for width in (30, 40, 50, 60, 200):  # the last alone is above
        assert instance.run(batch(1, 8, width)).shape == (1, 8, width)
        held = sum(4 * math.prod(shape) for shape in instance._buffers)
        assert held <= 4 * 8 * 100 or list(instance._buffers) == [(1, 8, 200)]


def test_a_graph_that_wants_its_images_elsewhere_still_sees_them_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime copies what is bound to another place once, at that moment."""
    instance = instance_of(tmp_path, monkeypatch)

    class Copying:
        def __init__(self, binding: Any) -> None:
            self._binding = binding

        def bind_ortvalue_input(self, name: str, value: Any) -> None:
            copy = ort.OrtValue.ortvalue_from_numpy(value.numpy().copy())
            self._binding.bind_ortvalue_input(name, copy)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._binding, name)

    session = instance._session
    run = session.run_with_iobinding
    monkeypatch.setattr(
        session, "io_binding", lambda: Copying(session._session.io_binding()), raising=False
    )
    monkeypatch.setattr(session, "run_with_iobinding", lambda bound, how: run(bound._binding, how))
    for seed in range(3):
        pixels = batch(2, 8, 8, seed=seed)
        assert (instance.run(pixels) == tiny_models.expected_label_map(pixels)).all()


def test_what_the_runtime_raises_is_passed_on_and_the_next_run_goes_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = instance_of(tmp_path, monkeypatch)

    def fail(binding: Any, options: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(instance._session, "run_with_iobinding", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            instance.run(batch(1, 8, 8))
    assert instance.run(batch(1, 8, 8)).shape == (1, 8, 8)


def test_the_memory_is_free_as_soon_as_nobody_uses_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = instance_of(tmp_path, monkeypatch)
    instance.run(batch(1, 8, 8))
    left = weakref.ref(instance)
    gc.disable()
    try:
        del instance
        assert left() is None
    finally:
        gc.enable()
