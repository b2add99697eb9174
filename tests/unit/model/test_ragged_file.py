"""`fcn ragged`: what it writes, what it refuses, and that nothing wrong is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from cli.main import main
from model.contract import METADATA_KEY, InputSpec
from model.float_model import QuantizeError, open_float_model
from model.ragged import NotRagged, ragged
from model.ragged import file as file_module
from model.ragged.file import MATES, check_mates, make_ragged, padded
from model.ragged.rewrite import SIZES
from service.core.engines.onnx_runtime import Session
from tests import tiny_models
from tests.drawing import street

SHIPPED = (
    Path(__file__).parents[3]
    / "model_repository"
    / "camvid-fcn8s-mobilenet_v1"
    / "1"
    / "model.onnx"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_models.write_blur(tmp_path, logits=True)


def test_the_shipped_model_in_a_ragged_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "2" / "model.onnx"
    assert main(["ragged", str(SHIPPED), str(out)]) == 0
    assert "labels agree on 100.0000% of the pixels" in capsys.readouterr().out
    alone, together = (Session(p, provider="cpu", threads=1) for p in (SHIPPED, out))
    sizes = [(120, 160), (97, 131), (160, 90), (33, 180)]
    pictures = [street(*size, seed=n) for n, size in enumerate(sizes)]
    label_maps = together.ragged[0](padded(pictures), sizes)
    for label_map, picture, (height, width) in zip(label_maps, pictures, sizes, strict=True):
        wanted = alone.run(picture[None])[0]
        assert (label_map[:height, :width] == wanted).all()
        assert len(np.unique(wanted)) > 2
    whole = street(120, 160)[None]
    assert (together.run(whole) == alone.run(whole)).all(), "and batches of one size as ever"


def test_the_report(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    assert main(["ragged", str(path), str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == str(out)
    assert [tuple(size) for size in report["sizes"]] == list(MATES)
    assert report["label_agreement"] == 1
    assert report["largest_logit_difference"] < 1e-6
    assert main(["ragged", str(path), str(out), "--overwrite"]) == 0
    assert "logits differ by at most" in capsys.readouterr().out


def test_a_file_that_is_there_is_kept(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("precious")
    with pytest.raises(NotRagged, match=r"out\.onnx exists: .* --overwrite"):
        make_ragged(path, out)
    assert out.read_text() == "precious"


def test_a_wrong_file_is_not_left_behind(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here: one that takes sizes and does nothing about them."""

    def blind(*given: Any) -> Any:
        proto, contract = ragged(*given)
        for node in proto.graph.node:
            if node.op_type == "Where":
                masked = list(node.input)
                del node.input[:]
                node.op_type = "Identity"
                node.input.append(masked[1])
        return proto, contract

    monkeypatch.setattr(file_module, "ragged", blind)
    out = tmp_path / "out" / "model.onnx"
    with pytest.raises(NotRagged, match="answers otherwise in a ragged batch.*nothing was written"):
        make_ragged(path, out)
    assert list(out.parent.iterdir()) == []


def test_files_that_are_refused(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    with pytest.raises(NotRagged, match="there is no file"):
        make_ragged(tmp_path / "none.onnx", out)
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(NotRagged, match="cannot be read as an ONNX model"):
        make_ragged(tmp_path / "text.onnx", out)
    nameless = tiny_models.write_file(tiny_models.build(), tmp_path, "nameless")
    with pytest.raises(NotRagged, match="has no contract"):
        make_ragged(nameless, out)
    with pytest.raises(NotRagged, match="is int8, which is for CPUs"):
        make_ragged(SHIPPED.with_name("model.int8.onnx"), out)
    make_ragged(path, out)
    with pytest.raises(NotRagged, match="is ragged already"):
        make_ragged(out, tmp_path / "again.onnx")
    with pytest.raises(QuantizeError, match="is ragged, .* give the file it was made of"):
        open_float_model(out)


def test_the_command_says_why_in_one_line(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = onnx.load(path)
    pooling = next(n for n in proto.graph.node if n.op_type == "AveragePool")
    pooling.op_type = "GlobalAveragePool"
    del pooling.attribute[:]
    onnx.save(proto, path)
    assert main(["ragged", str(path), str(tmp_path / "out.onnx")]) == 1
    said = capsys.readouterr().err
    assert (
        "fcn: blur cannot take images of several sizes in a batch: GlobalAveragePool (near) is not"
        in said
    )
    assert said.count("\n") == 1


def test_the_sizes_tried_are_ones_the_model_takes(tmp_path: Path) -> None:
    spec = InputSpec(stride=1, min_side_px=8, max_side_px=96, multiple_of_px=8)
    path = tiny_models.write_blur(tmp_path, input_spec=spec)
    report = make_ragged(path, tmp_path / "out.onnx")
    assert all(8 <= side <= 96 and side % 8 == 0 for size in report.sizes for side in size)
    assert report.largest_logit_difference is None
    contract = Session(tmp_path / "out.onnx", provider="cpu", threads=1).contract
    plain = Session(path, provider="cpu", threads=1).contract
    again = check_mates(path, plain, tmp_path / "out.onnx", contract)
    assert again.label_agreement == 1
    assert contract.input.sizes == SIZES
    assert METADATA_KEY in {p.key for p in onnx.load(tmp_path / "out.onnx").metadata_props}
