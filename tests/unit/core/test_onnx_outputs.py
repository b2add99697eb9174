"""A network that can give logits computes them for those who ask, and for nobody else."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from service.core.engines import onnx_runtime
from service.core.engines.onnx_outputs import without_output
from service.core.engines.onnx_runtime import open_onnx_runtime
from tests.drawing import street
from tests.tiny_models import expected_label_map, write_model

IMAGE = street(24, 40)


def test_the_output_goes_with_the_nodes_for_it_alone(tmp_path: Path) -> None:
    path = write_model(tmp_path, logits=True)
    whole = onnx.load(path)
    body = without_output(path, "logits")
    less = onnx.load_from_string(body)
    assert [output.name for output in whole.graph.output] == ["label_map", "logits"]
    assert [output.name for output in less.graph.output] == ["label_map"]
    needed = {name for node in less.graph.node for name in node.input} | {"label_map"}
    assert all(needed.intersection(node.output) for node in less.graph.node)
    assert less.metadata_props == whole.metadata_props
    assert less.graph.initializer == whole.graph.initializer
    (labels,) = ort.InferenceSession(body).run(None, {"image": IMAGE[None]})
    assert np.array_equal(labels[0], expected_label_map(IMAGE))


def test_without_an_output_that_is_not_there_nothing_is_left_out(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    assert onnx.load_from_string(without_output(path, "logits")) == onnx.load(path)


def test_what_is_no_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xffno model")
    with pytest.raises(ValueError, match="is no ONNX file"):
        without_output(path, "logits")


def test_logits_are_computed_for_those_who_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path, logits=True)
    network = open_onnx_runtime(path, provider="cpu", threads=1, instances=2)
    opened = []
    whole = onnx_runtime._open

    def counted(*words: object, **named: object) -> ort.InferenceSession:
        opened.append(named.get("body"))
        return whole(*words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_runtime, "_open", counted)
    wanted = expected_label_map(IMAGE)
    for instance in network.instances:
        assert np.array_equal(instance.run(IMAGE[None])[0], wanted)
    assert opened == []
    for instance in network.instances:
        labels, logits = instance.run_with_logits(IMAGE[None])
        assert np.array_equal(labels[0], wanted)
        assert np.array_equal(logits[0].argmax(axis=0), wanted)
    assert opened == [None], "once for all instances, and whole"


def test_weights_in_another_file_are_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a network cannot be opened without its logits it is opened whole; the log says so."""
    path = write_model(tmp_path, logits=True)
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    with caplog.at_level(logging.WARNING):
        network = open_onnx_runtime(path, provider="cpu", threads=1)
    assert "computes its logits in each run" in caplog.text
    labels, logits = network.instances[0].run_with_logits(IMAGE[None])
    assert np.array_equal(labels, network.instances[0].run(IMAGE[None]))
    assert np.array_equal(labels[0], expected_label_map(IMAGE))
    assert logits.shape[1] == len(network.contract.classes)
