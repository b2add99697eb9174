"""The bare limit runs its loops at the same time, and says when one of them cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import limit
from bench.images import write_jpeg
from tests.tiny_models import write_model


def test_every_loop_counts(tmp_path: Path) -> None:
    model = write_model(tmp_path / "models")
    found = limit.measure(model, write_jpeg(tmp_path / "i.jpg", (24, 32)), 2, 1, 0.05)
    assert (found["loops"], found["threads"]) == (2, 1)
    assert found["latency"]["count"] >= 2 and found["images_per_s"] > 0


def test_a_model_that_does_not_load_is_named(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_text("none")
    image = write_jpeg(tmp_path / "i.jpg", (24, 32))
    with pytest.raises(RuntimeError, match=r"does not run with .*model\.onnx"):
        limit.measure(model, image, 2, 1, 0.05)
