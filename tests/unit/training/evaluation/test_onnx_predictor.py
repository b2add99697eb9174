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


@pytest.mark.parametrize(
    ("content", "error", "complaint"),
    [
        (None, EvaluationError, r"there is no file .*a\.onnx"),
        (b"junk", EvaluationError, r"a\.onnx cannot be loaded as an ONNX model"),
        (build().SerializeToString(), ContractError, r"a\.onnx has no contract .*fcn export"),
    ],
    ids=["missing", "junk", "bare"],
)
def test_what_is_no_model(
    tmp_path: Path, content: bytes | None, error: type[Exception], complaint: str
) -> None:
    if content is not None:
        (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(error, match=complaint):
        OnnxPredictor(tmp_path / "a.onnx")


def test_an_image_the_graph_refuses(tmp_path: Path) -> None:
    """A file whose contract is not that of its graph."""
    metadata = {METADATA_KEY: contract().to_json()}
    floats = build(metadata=metadata, input_type=onnx.TensorProto.FLOAT)
    predict = OnnxPredictor(write_file(floats, tmp_path))
    with pytest.raises(EvaluationError, match=r"model\.onnx fails on an image of 24x32"):
        predict(street(24, 32))
