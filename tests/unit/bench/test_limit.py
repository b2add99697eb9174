"""The bare limit runs its loops at the same time, and says when one of them cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import limit
from bench.images import write_jpeg
from tests.tiny_models import write_model

FP32 = ("onnxruntime", "fp32")


def test_every_loop_counts(tmp_path: Path) -> None:
    model = write_model(tmp_path / "models")
    found = limit.measure(model, write_jpeg(tmp_path / "i.jpg", (24, 32)), *FP32, 2, 1, 0.05)
    assert (found["loops"], found["threads"]) == (2, 1)
    assert found["latency"]["count"] >= 2 and found["images_per_s"] > 0


def test_a_model_that_does_not_load_is_named(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_text("none")
    image = write_jpeg(tmp_path / "i.jpg", (24, 32))
    with pytest.raises(RuntimeError, match=r"does not run with .*model\.onnx"):
        limit.measure(model, image, *FP32, 2, 1, 0.05)


def test_the_limit_is_the_best_way_and_a_refused_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {"fp32": 30.0, "bf16": 70.0}

    def measure(model: Path, image: Path, engine: str, precision: str, *rest: float) -> object:
        if precision not in speeds:
            raise RuntimeError("other labels")
        return {"precision": precision, "images_per_s": speeds[precision]}

    monkeypatch.setattr(limit, "measure", measure)
    wanted = [FP32, ("openvino", "bf16"), ("openvino", "int8")]
    monkeypatch.setattr(limit, "ways_of", lambda *words: wanted)
    found = limit.ways(tmp_path / "model.int8.onnx", tmp_path / "i.jpg", 0.05)
    assert limit.best(found)["precision"] == "bf16"
    assert {way["precision"] for way in found} == {"fp32", "bf16"}
    assert "other labels" in capsys.readouterr().err
