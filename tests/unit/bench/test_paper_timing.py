"""The timing table of the paper, with tiny counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from bench import paper_timing


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["paper_timing", *words])
    paper_timing.main()


@pytest.fixture
def narrow_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """fc6 and fc7 of 8 channels: the full network's weights alone take seconds to draw."""
    monkeypatch.setattr("model.build.FC_CHANNELS", 8)


@pytest.mark.usefixtures("narrow_vgg")
def test_a_row_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "timing.json"
    words = ["--rounds", "3", "--side-px", "33", "--threads", "1", "--out", str(out)]
    run(monkeypatch, *words, "--networks", "vgg16", "mobilenet_v1")
    result = json.loads(out.read_text())
    assert {"date", "revision", "machine", "versions", "device", "threads"} <= set(result)
    vgg, mobilenet = result["rows"]
    assert (vgg["network"], mobilenet["network"]) == ("fcn32s-vgg16", "fcn32s-mobilenet_v1")
    assert (vgg["paper_ms"], mobilenet["paper_ms"]) == (210, None)
    for row in result["rows"]:
        assert row["forward"]["count"] == 3
        assert 0 < row["forward"]["min_ms"] <= row["forward"]["mean_ms"]
        assert (row["height"], row["width"]) == (33, 33)
        assert row["parameters"] > 10_000
    stdout, stderr = capsys.readouterr()
    assert "| fcn32s-vgg16 | 33x33 |" in stdout
    assert "| 210 ms |" in stdout
    assert "5/5" in stderr  # the progress bar, two rounds of warm-up included


@pytest.mark.usefixtures("narrow_vgg")
def test_the_papers_time_is_that_of_32s() -> None:
    device = torch.device("cpu")
    row = paper_timing.measure("vgg16", "8s", 33, 1, device)
    assert row["network"] == "fcn8s-vgg16"
    assert row["paper_ms"] is None


def test_the_default_is_every_backbone_and_the_papers_padding() -> None:
    names = paper_timing.default_networks()
    assert {"vgg16-pad100", "mobilenet_v1"} <= set(names)
    assert paper_timing.spec_of("vgg16-pad100").padding == "pad100"
    for name in names:
        assert paper_timing.spec_of(name, "32s").variant == "32s"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--networks", "resnet50"], "no backbone 'resnet50': want one of "),
        (["--networks", "vgg16-pad99"], "no padding 'pad99'"),
        (["--networks", "mobilenet_v1-pad100"], "padding"),
        (["--rounds", "0"], "at least one round"),
        (["--side-px", "0"], "at least one pixel"),
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
