"""The training benchmark, with tiny counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import training_throughput
from tests import narrow_network

TINY = [
    "--batch", "2", "--crop", "32", "48", "--rounds", "2", "--steps", "1", "--warm-up", "1",
    "--images", "4", "--loader-batches", "2", "--workers", "0", "--threads", "1",
]  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["training_throughput", *words])
    training_throughput.main()


def test_rows_by_network_and_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow_network.narrow(monkeypatch)
    out = tmp_path / "result.json"
    for precision in ("fp32", "bf16", "fp32"):
        run(monkeypatch, *TINY, "--precision", precision, "--out", str(out))
    result = json.loads(out.read_text())
    assert {"date", "revision", "machine", "versions"} <= set(result)
    assert [row["precision"] for row in result["rows"]] == ["bf16", "fp32"]
    for row in result["rows"]:
        assert row["network"] == "fcn8s-mobilenet_v1" and row["crop"] == [32, 48]
        assert len(row["ours"]["turns"]) == len(row["plain"]["turns"]) == 2
        quotient = row["ours"]["images_per_s"] / row["plain"]["images_per_s"]
        assert row["ratio"] == pytest.approx(quotient, abs=1e-3) and row["ratio"] > 0
        assert min(row["loader"].values()) > 0
    stdout, stderr = capsys.readouterr()
    assert "| fcn8s-mobilenet_v1 | fp32 | 2 | 32x48 |" in stdout and "4/4" in stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--network", "resnet50"], "invalid choice"),
        (["--steps", "0"], "at least one of everything"),
        (["--images", "1", "--batch", "2"], "want at least one batch"),
    ],
)
def test_wrong_usage(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    complaint: str,
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, *words)
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err
