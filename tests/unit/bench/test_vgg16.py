"""The measurement of the paper's network: turns are counted, servers stopped, products right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import vgg16


class FakeServer:
    alive = 0

    def __init__(self, repository: Path, *flags: str) -> None:
        assert "--precision=int8" in flags
        self.url = f"{repository.name} {flags[0]}"
        FakeServer.alive += 1

    def stop(self) -> None:
        FakeServer.alive -= 1


class FakeRest:
    def __init__(self, url: str) -> None:
        self.infer_s = {"a --engine=x": 0.001, "b --engine=y": 0.002}[url]

    def connect(self) -> Any:
        return lambda body: {"decode": 0.0, "infer": self.infer_s, "render": 0.0, "queue": 0.0}


def test_each_server_gets_its_requests_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vgg16, "Server", FakeServer)
    monkeypatch.setattr(vgg16, "Rest", FakeRest)
    rows = vgg16.measure(tmp_path, [("a", "x"), ("b", "y")], 19)
    assert [(row["file"], row["engine"]) for row in rows] == [("a", "x"), ("b", "y")]
    assert [row["infer"]["p50_ms"] for row in rows] == [1.0, 2.0]
    assert all(row[stage]["count"] == 19 for row in rows for stage in ("client", "decode"))
    assert FakeServer.alive == 0


def test_a_failing_server_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vgg16, "Server", FakeServer)
    with pytest.raises(OSError):
        vgg16.measure(tmp_path, [("a", "x")], 1)  # the real client finds no such host
    assert FakeServer.alive == 0


def test_the_peaks_are_of_real_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg16, "_MATRIX", 32)
    found: Any = vgg16.onnx_product(1)()
    (result,) = found
    assert result.shape == (32, 32)
    assert result.dtype == np.int32
    peaks = vgg16.matrix_peaks(1)
    assert set(peaks) == {"fp32", "bf16", "int8", "int8_onnxruntime"}
    assert min(peaks.values()) > 0
