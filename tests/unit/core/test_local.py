"""The segmenter in this process is wired as the server's is."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from service.core.engines import choice
from service.core.engines.warm_up import warm_up
from service.core.models import loader
from service.core.types import Network
from service.local import LocalSegmenter
from service.settings import load_settings
from tests import tiny_models
from tests.drawing import png, street
from tests.serving import ROOT, environment

CPU = {"provider": "cpu", "intra_op_threads": "1"}


def write_int8(repository: Path) -> Path:
    """A model with a file in 8 bits beside it; returns the path of `model.onnx`."""
    path = tiny_models.write_model(repository)
    contract = dataclasses.replace(tiny_models.contract(), precision="int8")
    other = tiny_models.write_model(repository / "aside", model_contract=contract)
    other.rename(path.with_name(choice.INT8_FILE))
    return path


@pytest.mark.parametrize(
    ("precision", "served"), [("auto", "int8"), ("int8", "int8"), ("fp32", "fp32")]
)
def test_the_precision_is_that_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, served: str
) -> None:
    monkeypatch.setattr(choice, "cpu_flags", lambda: frozenset({"avx512_vnni"}))
    write_int8(tmp_path / "models")
    settings = load_settings({**CPU, "precision": precision})
    with closing(LocalSegmenter(tmp_path / "models", settings)) as segmenter:
        assert segmenter.status(None)[1].precision == served


def test_the_settings_sizes_are_warmed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    def watched(network: Network, wanted: list[tuple[int, int]]) -> None:
        sizes.extend(wanted)
        warm_up(network, wanted)

    monkeypatch.setattr(loader, "warm_up", watched)
    tiny_models.write_model(tmp_path)
    settings = load_settings({**CPU, "warm_up_sizes": "24x32"})
    LocalSegmenter(tmp_path, settings).close()
    assert (24, 32) in sizes


def test_a_process_that_closes_nothing_ends_all_the_same(tmp_path: Path) -> None:
    """Ray's workers close nothing, and neither do many scripts."""
    tiny_models.write_model(tmp_path)
    script = (
        "import pathlib, sys\n"
        "from service.core.types import SegmentOptions\n"
        "from service.local import LocalSegmenter\n"
        "from service.settings import load_settings\n"
        "local = LocalSegmenter(pathlib.Path(sys.argv[1]), load_settings({'provider': 'cpu'}))\n"
        "print(local.segment(sys.stdin.buffer.read(), SegmentOptions()).height)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        input=png(street(24, 32)),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.split() == [b"24"]
