"""The measurement of large photos runs, and scores what the server answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import large_photo
from tests.drawing import street


def test_it_times_files_and_scores_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_photo, "LARGE", (1200, 900))
    for kind in ("images", "labels"):
        (tmp_path / "val" / kind).mkdir(parents=True)
    Image.fromarray(street(360, 480)).save(tmp_path / "val/images/a.jpg")
    Image.fromarray(np.full((360, 480), 3, np.uint8)).save(tmp_path / "val/labels/a.png")
    out = tmp_path / "measured.json"
    words = ["--data-root", str(tmp_path), "--rounds", "1", "--slot-s", "0", "--out", str(out)]
    assert large_photo.main(words) == 0
    measured = json.loads(out.read_text())
    assert measured["4000x3000"]["p50_ms"] > 0 and measured["scale_none_s"] > 0
    assert list(measured["mean_iu"]) == ["480x360", "4000x3000"]


def test_the_mean_iu_is_that_of_the_classes_there() -> None:
    assert large_photo.mean_iu(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])) == (3 / 4 + 4 / 5) / 2
