"""The measurement of ragged batches runs, and counts what it says it counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import ragged
from tests import tiny_models


def test_every_policy_answers_every_mix(tmp_path: Path) -> None:
    path = tiny_models.write_blur(tmp_path)
    measured = ragged.measure("cpu", [str(path)], 0.03)
    rows = measured["rows"]
    assert len(rows) == len(ragged.MIXES) * (3 + len(ragged.MAX_PADDING))
    for row in rows:
        assert row["images"] >= row["mean_batch"] >= 1
        assert row["images_per_s"] > 0
        most = float(row["policy"].removeprefix("ragged, ")) if "ragged" in row["policy"] else 0
        assert 0 <= row["padding"] <= most
    batches = {(row["mix"], row["policy"]): row["mean_batch"] for row in rows}
    for mix in ragged.MIXES:
        assert batches[mix, "alone"] == 1
        assert batches[mix, "ragged, 0.5"] >= batches[mix, "grouped"]
    assert batches["cropped", "ragged, 0.5"] > 2 * batches["cropped", "grouped"]
    ragged.print_table(rows)


def test_networks_have_names_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(ragged, "make_network", lambda name: name)
    monkeypatch.setattr(
        ragged,
        "export",
        lambda network, contract, path: made.append(
            path.write_bytes(tiny_models.write_blur(tmp_path).read_bytes())
        ),
    )
    plain, mixed = ragged._files("mobilenet_v1", tmp_path)
    assert made and plain.is_file() and mixed.is_file()


def test_mixes_are_of_the_sizes_they_say() -> None:
    assert sum(ragged.VOC.values()) == pytest.approx(1)
    random = np.random.default_rng(0)
    for name, mix in ragged.MIXES.items():
        sizes = mix(random)
        drawn = [next(sizes) for _ in range(200)]
        assert all(min(size) > 240 and max(size) <= 640 for size in drawn), name
        assert len(set(drawn)) > 5
