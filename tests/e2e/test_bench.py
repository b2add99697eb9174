"""The benchmark of the server runs, and records what it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import record
from tests import serving
from tests.serving import write_slow_model
from tests.tiny_models import write_model


def test_segment_load_measures_every_row(tmp_path: Path) -> None:
    write_model(tmp_path / "models")
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.segment_load"]
        + ["--repository", str(tmp_path / "models"), "--requests", "8", "--out", str(out)],
        cwd=serving.ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("FCN_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"date", "revision", "machine", "versions"} <= set(result)
    rows = {(r["transport"], r["height"], r["clients"]) for r in result["rows"]}
    assert rows == {(t, h, c) for t in ("rest", "grpc") for h in (360, 375) for c in (1, 8)}
    for row in result["rows"]:
        assert row["client"]["count"] == 8
        stages = sum(row[stage]["min_ms"] for stage in ("decode", "queue", "infer", "render"))
        assert 0 < stages <= row["client"]["p99_ms"]


def test_overload_measures_every_load(tmp_path: Path) -> None:
    write_slow_model(tmp_path / "models", turns=200)
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.overload", "--repository", str(tmp_path / "models")]
        + ["--seconds", "0.5", "--capacity-s", "0.3", "--loads", "0.5,3", "--out", str(out)],
        cwd=serving.ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("FCN_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert {"date", "revision", "machine", "versions"} <= set(result)
    assert result["capacity_per_s"] > 0
    assert [row["load"] for row in result["rows"]] == [0.5, 3.0]
    for row in result["rows"]:
        assert sum(row["statuses"].values()) == row["offered"] > 0
        assert set(row["statuses"]) <= {"200", "429", "504"}
        assert row["refused_without_retry_after"] == 0


def test_summary_is_in_milliseconds() -> None:
    found = record.summary([0.001, 0.002, 0.003])
    assert found["p50_ms"] == pytest.approx(2.0)
    assert found["min_ms"] == pytest.approx(1.0)
    assert found["count"] == 3


def test_large_pictures_have_the_same_labels_in_parts(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench.large_pictures", "--megapixels", "0.5"]
        + ["--whole-pixels", "400000", "--compare", "0.7", "--out", str(out)],
        cwd=serving.ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("FCN_")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts, whole, largest = json.loads(out.read_text())["rows"]
    assert parts["labels_that_differ"] == 0
    assert whole["whole_pixels"] > 700_000 > parts["whole_pixels"]
    assert largest["most_mib"] >= largest["at_rest_mib"] > 0
