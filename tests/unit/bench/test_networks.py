"""The networks' times and the replies' costs, with tiny counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import networks, replies
from model.build import build

TINY = ["--rounds", "2", "--size", "40", "48", "--threads", "1"]


def result_of(out: Path) -> Any:
    found = json.loads(out.read_text())
    assert {"date", "revision", "machine", "versions"} <= set(found)
    return found


def build_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the channels, under the names of the whole networks."""
    monkeypatch.setattr(
        networks, "build", lambda spec, classes: build(replace(spec, width=1 / 8), classes)
    )


def test_the_served_network_takes_turns_with_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_narrow(monkeypatch)
    monkeypatch.setattr(networks, "_PAUSE_S", 0)
    out = tmp_path / "result.json"
    words = ["--networks", "mobilenet_v1", "--int8", "--out", str(out)]
    assert networks.main([*TINY, *words]) == 0
    (row,) = result_of(out)["rows"]
    assert (row["height"], row["width"]) == (40, 48)
    assert set(row["of_onnxruntime"]) == {"onnxruntime", "int8", "pytorch"}
    for name, ratio in row["of_onnxruntime"].items():
        assert row[name]["count"] >= 2
        assert ratio == pytest.approx(row[name]["p50_ms"] / row["onnxruntime"]["p50_ms"], abs=0.01)
    assert "| fcn8s-mobilenet_v1 | 40x48 | int8 |" in capsys.readouterr().out


def test_the_papers_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_narrow(monkeypatch)
    out = tmp_path / "result.json"
    words = ["--protocol", "paper", "--networks", "alexnet-pad100", "mobilenet_v1"]
    assert networks.main([*TINY, *words, "--out", str(out)]) == 0
    alexnet, mobilenet = result_of(out)["rows"]
    assert alexnet["network"] == "fcn32s-alexnet-pad100"
    assert mobilenet["network"] == "fcn32s-mobilenet_v1"
    assert (alexnet["paper_ms"], mobilenet["paper_ms"]) == (50, None)
    assert alexnet["forward"]["count"] >= 2
    assert alexnet["parameters"] > 10_000
    assert "| 50 |" in capsys.readouterr().out
    assert {"vgg16-pad100", "mobilenet_v1"} <= set(networks.papers_networks())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--networks", "resnet50"], "no backbone 'resnet50': want one of "),
        (["--networks", "vgg16-pad99"], "no padding 'pad99'"),
        (["--networks", "mobilenet_v1-pad100"], "padding"),
        (["--rounds", "0"], "at least one round"),
        (["--size", "0", "4"], "at least one pixel"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: list[str], complaint: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        networks.main(words)
    assert exit_.value.code == 2
    assert complaint in capsys.readouterr().err


def test_every_reply_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    words = ["--height", "120", "--width", "160", "--rounds", "1", "--out", str(out)]
    assert replies.main(words) == 0
    found = result_of(out)
    assert set(found["smooth"]) < set(found["detailed"])
    assert {"label_map", "polygons", "confidence"} < set(found["detailed"])
    for row in found["detailed"].values():
        assert row["bytes"] > 100 and row["p50_ms"] > 0
    assert "| label_map |" in capsys.readouterr().out
