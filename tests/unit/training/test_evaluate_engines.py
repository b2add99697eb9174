"""`fcn evaluate` scores a file in the engine and precision that would serve it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from cli.main import main
from tests.conftest import need
from tests.tiny_models import write_model
from tests.unit.training import brightest

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    brightest.write(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def onnx(tmp_path: Path) -> str:
    return str(write_model(tmp_path))


def evaluate(source: str, root: Path, *words: str) -> int:
    return main(["evaluate", source, "--data-root", str(root), *words])


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_is_scored_in_the_engine_that_would_serve_it(
    onnx: str, images: Path, capsys: Capture, engine: str
) -> None:
    need(engine != "openvino" or find_spec("openvino") is not None, "the package openvino")
    assert evaluate(onnx, images, "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert evaluate(onnx, images, "--json", "--engine", engine, "--precision", "fp32") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["source"] == f"{onnx} in {engine}, fp32"
    assert report["class_iu"] == plain["class_iu"]


@pytest.mark.parametrize(
    ("source", "words", "complaint"),
    [
        ("{onnx}", ["--precision", "int8"], "model.int8.onnx is missing"),
        ("last.pt", ["--engine", "openvino"], "are for a model file, and last.pt is none"),
        ("none.onnx", ["--engine", "auto"], "there is no file none.onnx"),
        ("none.onnx", ["--engine", "auto", "--model", "a"], "do not go with --engine"),
    ],
)
def test_engines_are_for_files_that_are_there(
    onnx: str, images: Path, capsys: Capture, source: str, words: list[str], complaint: str
) -> None:
    assert evaluate(source.format(onnx=onnx), images, *words) == 1
    assert complaint in capsys.readouterr().err
