"""The training benchmark, with tiny counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import training

NAME = "fcn8s-mobilenet_v1_0.125"
TINY = [
    "--batch", "2", "--crop", "32", "48", "--rounds", "2", "--steps", "1", "--warm-up", "1",
    "--images", "4", "--width", "0.125", "--workers", "0", "--threads", "1",
]  # fmt: skip


def test_both_loops_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    assert training.main([*TINY, "--precision", "fp32", "--out", str(out)]) == 0
    row = json.loads(out.read_text())
    assert {"date", "revision", "machine", "versions"} <= set(row)
    assert (row["network"], row["crop"]) == (NAME, [32, 48])
    assert len(row["each_turn"]["ours"]) == len(row["each_turn"]["plain"]) == 2
    speed = row["images_per_s"]
    assert row["ratio"] == pytest.approx(speed["ours"] / speed["plain"], abs=1e-3)
    assert min(row["ratio"], *row["loader_images_per_s"].values()) > 0
    assert f"ratio {row['ratio']:.2f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--network", "resnet50"], "invalid choice"),
        (["--steps", "0"], "at least one of everything"),
        (["--images", "1", "--batch", "2"], "want at least one batch"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: list[str], complaint: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        training.main(words)
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err
