"""The committed stubs are what the .proto files generate, and every field is documented."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from proto import generate
from proto.segmentation.v1 import segmentation_pb2 as pb
from service.api.grpc.server import OUTPUTS
from service.core.segmenter import Output


def test_stubs_are_fresh() -> None:
    assert generate.stale() == []


def test_drift_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(generate.ROOT / "proto", tmp_path / "proto")
    source = tmp_path / "proto" / "segmentation" / "v1" / "segmentation.proto"
    text = source.read_text()
    source.write_text(text.replace("string model = 2;", "string net = 2;"))
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert {path.name for path in generate.stale()} == {
        "segmentation_pb2.py",
        "segmentation_pb2.pyi",
    }


def test_every_field_is_documented() -> None:
    for source in generate.sources():
        lines = (generate.ROOT / source).read_text().splitlines()
        for before, line in zip(lines, lines[1:], strict=False):
            if re.match(r"\s+(rpc |[\w. ]+ = \d+;)", line):
                assert before.strip().startswith("//"), f"{source}: {line.strip()}"


def test_every_output_can_be_asked_for() -> None:
    assert set(OUTPUTS) == set(pb.Output.values())
    assert set(OUTPUTS.values()) == set(Output)
