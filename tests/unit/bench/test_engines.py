"""The measurements of the CPU engines run, and count what they say they count."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from bench import engines, size_memory
from tests import tiny_models
from tests.conftest import need


def test_a_slot_counts_every_call_of_every_caller() -> None:
    called: list[int] = []

    def caller(number: int) -> None:
        called.append(number)
        time.sleep(0.01)

    calls, elapsed = engines.run_slot([lambda: caller(0), lambda: caller(1)], 0.05)
    assert elapsed >= 0.05
    assert len(calls) == len(called)
    assert set(called) == {0, 1}
    assert min(calls) >= 0.01


def test_turns_report_images_not_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "run_slot", lambda callers, slot: ([0.01] * 5, 0.05))
    (row,) = engines.take_turns({"four": ([lambda: None], 4)}, 0.01, 0.05)
    assert row == {"name": "four", "images_per_s": 400.0, "p50_ms": 10.0, "slots": 1}


@pytest.mark.parametrize("part", ["instances", "options"])
def test_every_configuration_runs(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "SIZE", (24, 32))
    configurations = engines.PARTS[part](tiny_models.write_model(tmp_path))
    assert len(configurations) > 10
    for callers, images in configurations.values():
        assert images >= 1
        for caller in callers:
            caller()


@pytest.mark.parametrize("arena", size_memory.ARENAS)
def test_memory_is_read_ten_times(
    tmp_path: Path, arena: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = size_memory.measure(tiny_models.write_model(tmp_path), 20, arena, "default")
    assert len(row["resident_mb"]) == 10
    assert min(row["resident_mb"]) > 10


def test_memory_of_the_server_is_that_of_its_process(tmp_path: Path) -> None:
    tiny_models.write_model(tmp_path)
    row = size_memory.measure_server(tmp_path, 20)
    assert len(row["resident_mb"]) == 10
    assert min(row["resident_mb"]) >= row["loaded_mb"] * 0.9 > 30


def test_no_size_comes_twice() -> None:
    sizes = size_memory.draw_sizes(1000)
    assert len(set(sizes)) == 1000
    assert np.max(sizes, axis=0).tolist() <= [480, 640]


def test_both_precisions_in_both_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(find_spec("openvino") is not None, "the package openvino")
    monkeypatch.setattr(engines, "SIZE", (24, 32))
    model = tiny_models.write_model(tmp_path)
    model.with_name("model.int8.onnx").write_bytes(model.read_bytes())
    rows = engines.PARTS["precisions"](model)
    assert [name.split(", ")[0] for name in rows] == ["fp32"] * 4 + ["int8"] * 4
    for callers, images in rows.values():
        assert images == 1
        assert np.asarray(callers[0]()).shape == (1, 24, 32)
