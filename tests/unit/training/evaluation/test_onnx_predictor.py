"""An ONNX file as a predictor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from model.contract import METADATA_KEY, ContractError
from tests.drawing import street
from tests.tiny_models import build, contract, expected_label_map, write_file, write_model
from training.evaluation.evaluate import EvaluationError
from training.evaluation.onnx_predictor import OnnxPredictor


def test_label_map_and_contract(tmp_path: Path) -> None:
    predict = OnnxPredictor(write_model(tmp_path, logits=True), threads=1)
    assert predict.contract.class_names == ("red", "green", "blue")
    for size in ((24, 32), (7, 5), (1, 1)):
        image = street(*size)
        label_map = predict(image)
        assert label_map.dtype == np.uint8
        assert (label_map == expected_label_map(image)).all()


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"there is no file .*none\.onnx"):
        OnnxPredictor(tmp_path / "none.onnx")


def test_junk(tmp_path: Path) -> None:
    path = tmp_path / "junk.onnx"
    path.write_bytes(b"junk")
    with pytest.raises(EvaluationError, match=r"junk\.onnx cannot be loaded as an ONNX model"):
        OnnxPredictor(path)


def test_without_contract(tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    onnx.save(build(), str(path))
    with pytest.raises(ContractError, match=r"bare\.onnx has no contract .*fcn export"):
        OnnxPredictor(path)


def test_an_image_the_graph_refuses(tmp_path: Path) -> None:
    """A file whose contract is not that of its graph."""
    metadata = {METADATA_KEY: contract().to_json()}
    floats = build(metadata=metadata, input_type=onnx.TensorProto.FLOAT)
    predict = OnnxPredictor(write_file(floats, tmp_path))
    with pytest.raises(EvaluationError, match=r"model\.onnx fails on an image of 24x32"):
        predict(street(24, 32))
