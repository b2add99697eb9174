"""The benchmarks of the server run, and record what they must."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import versus
from tests import serving
from tests.serving import write_slow_model
from tests.tiny_models import write_model


def run(out: Path, module: str, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", module, *words, "--out", str(out)],
        cwd=serving.ROOT,
        env=serving.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(out.read_text())
    assert {"date", "revision", "machine", "versions"} <= set(result)
    return result


def test_stages_measures_every_row(tmp_path: Path) -> None:
    model = write_model(tmp_path / "models")
    out = tmp_path / "result.json"
    result = run(out, "bench.stages", "--model", str(model), "--seconds", "0.3")
    rows = {(r["transport"], r["height"], r["connections"]) for r in result["rows"]}
    assert rows == {(t, h, c) for t in ("rest", "grpc") for h in (360, 375) for c in (1, 8)}
    for row in result["rows"]:
        assert row["answered"] > 0
        stages = sum(row["stages"][name]["min_ms"] for name in ("decode", "queue", "infer"))
        assert 0 < stages <= row["latency"]["p99_ms"]


def test_versus_compares_two_checkouts(tmp_path: Path) -> None:
    model = write_slow_model(tmp_path / "models", turns=50, turns_at_least=10_000)
    words = ["--model", str(model), "--rounds", "2", "--seconds", "0.3", "--open-seconds", "0.4"]
    words += ["--connections", "1", "4", "--loads", "0.3", "3", "--after-flags=--max-batch=2"]
    result = run(tmp_path / "result.json", "bench.versus", *words)
    assert result["states"]["after"]["flags"] == ["--max-batch=2"]
    assert len(result["limits_per_s"]) == 2
    assert set(result["loads"]) == {"1 connection", "4 connections", "0.3x", "3x"}
    for load in result["loads"].values():
        for state in ("before", "after"):
            assert load[state]["answered"] > 0
            assert len(load[state]["each_round"]) == 2
            assert 0 < load[state]["generator_share"] < 1
        for ratio in load["after_of_before"].values():
            assert ratio is None or 0 < ratio["least"] <= ratio["median"] <= ratio["largest"]
    for state in ("before", "after"):
        memory = result["memory"][state]
        assert 20 < memory["resident_mib"] <= memory["most_resident_mib"]


def test_hooks_are_measured_beside_none(tmp_path: Path) -> None:
    model = write_model(tmp_path / "models")
    words = ["--model", str(model), "--rounds", "2", "--seconds", "0.5"]
    rows = run(tmp_path / "result.json", "bench.hooks", *words)["rows"]
    assert {(row["hooks"], row["connections"]) for row in rows} == {
        (kind, count) for kind in ("none", "nothing", "example") for count in (1, 8)
    }
    for row in rows:
        least, median = row["of_none"]["least"], row["of_none"]["median"]
        # A turn may be too short for an answer, where others keep the machine busy.
        assert 0 <= least <= median <= row["of_none"]["largest"]
        assert row["hooks"] != "none" or least == median


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--before", "."], "there is no model_repository"),
        (["--model", "model.onnx", "--rounds", "0"], "must be above 0"),
        (["--model", "model.onnx"], "there is no file"),
        (["--model", "model.onnx", "--precision", "int8"], r"there is no file .*int8\.onnx"),
    ],
)
def test_versus_says_what_it_lacks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        versus.main(words)
    assert re.search(complaint, f"{exit_.value} {capsys.readouterr().err}")


def test_versus_gives_the_last_words_of_a_server_that_does_not_start(tmp_path: Path) -> None:
    model = write_model(tmp_path / "models")
    with pytest.raises(SystemExit, match="fcn serve does not start: .*--no-such-flag"):
        versus.main(["--model", str(model), "--before-flags=--no-such-flag"])
