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


def test_summary_is_in_milliseconds() -> None:
    found = record.summary([0.001, 0.002, 0.003])
    assert found["p50_ms"] == pytest.approx(2.0)
    assert found["min_ms"] == pytest.approx(1.0)
    assert found["count"] == 3
