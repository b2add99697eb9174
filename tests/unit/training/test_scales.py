"""`fcn evaluate --scales` finds the sizes that a network knows; contracts and cards name them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli.main import main
from model.contract import Contract, ContractError, InputSpec
from model.export.onnx_file import read_exported
from tests.drawing import UInt8Array
from tests.tiny_models import contract, expected_label_map, write_model
from tests.unit.training import brightest
from tests.unit.training.recipes import Run
from training.datasets import open_dataset
from training.evaluation.scales import ScaleScore, known_range, score_scales, with_range
from training.publish import make_contract, model_card

RANGE = {"learned_side_px": 480, "range_from_px": 240, "range_to_px": 960}


def scored(*means: tuple[float, float]) -> tuple[ScaleScore, ...]:
    return tuple(ScaleScore(scale, round(480 * scale), mean) for scale, mean in means)


@pytest.mark.parametrize(
    ("means", "first", "last"),
    [
        ([(0.5, 0.5), (1, 0.7), (2, 0.69), (4, 0.4)], 480, 960),
        ([(0.5, 0.7), (1, 0.7), (2, 0.5), (4, 0.7)], 240, 480),
        ([(0.25, 0.69), (0.5, 0.6), (1, 0.7)], 480, 480),
        ([(1, 0.7), (2, 0.9), (4, 0.681)], 480, 1920),
    ],
)
def test_the_range_is_around_the_images_own_size(
    means: list[tuple[float, float]], first: int, last: int
) -> None:
    assert known_range(scored(*means)) == {
        "learned_side_px": 480,
        "range_from_px": first,
        "range_to_px": last,
    }


def test_images_are_shown_at_each_size_and_scored_at_their_own(tmp_path: Path) -> None:
    brightest.write(tmp_path)
    data = open_dataset("folder", tmp_path, "test")
    shown = []

    def predict(image: UInt8Array) -> UInt8Array:
        """Knows nothing above 50 px."""
        shown.append(image.shape[:2])
        known = max(image.shape[:2]) <= 50
        return expected_label_map(image) if known else np.zeros(image.shape[:2], np.uint8)

    small, own, large = score_scales(predict, data, (2, 0.5), every=3, progress=False)
    assert [s.scale for s in (small, own, large)] == [0.5, 1, 2], "its own, too, and in order"
    assert shown == [(10, 16), (20, 31), (40, 62), (12, 14), (23, 28), (46, 56)]
    assert (own.longer_side_px, own.mean_iu) == (30, 1.0)
    assert large.mean_iu < 0.5 < small.mean_iu


def evaluate(source: str | Path, root: Path, *words: str) -> int:
    return main(["evaluate", str(source), "--data-root", str(root), *words])


def test_the_command_prints_sizes_and_writes_them_into_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    brightest.write(tmp_path / "images")
    file = write_model(tmp_path)
    int8 = file.with_name("model.int8.onnx")
    int8.write_bytes(file.read_bytes())
    assert evaluate(file, tmp_path / "images", "--scales", "0.5,2") == 0
    assert "longer side [px]" in (printed := capsys.readouterr().out)
    assert "Within 2 of the images' own size: " in printed
    assert evaluate(file, tmp_path / "images", "--scales", "2", "--json", "--write-range") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [s["scale"] for s in found["scales"]] == [1, 2]
    assert f"{int8} has the range" in err
    for path in (file, int8):
        written = read_exported(path)[1]
        assert written == replace(
            contract(), input=with_range(contract().input, found["input_range"]), format_version=3
        )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--scales", "0"], "want factors from 0.01 to 100"),
        (["--scales", "1,x"], "want factors from 0.01 to 100"),
        (["--every", "2"], "are for --scales"),
        (["--write-range"], "are for --scales"),
        (["--scales", "2", "--write-range"], "--write-range is for an ONNX file"),
    ],
)
def test_what_does_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    try:
        code = evaluate("last.pt", tmp_path, *words)
    except SystemExit as stopped:  # argparse's
        code = int(stopped.code or 0)
    assert code != 0 and complaint in capsys.readouterr().err


def test_the_range_reaches_contract_and_card(finished: Run) -> None:
    measured = {
        "split": "test",
        **dict.fromkeys(
            ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"), 0.7
        ),
        "class_iu": dict.fromkeys(("sky", "house", "road", "tree"), 0.7),
        "scales": [{"scale": 0.5, "longer_side_px": 240, "mean_iu": 0.69}],
        "input_range": RANGE,
    }
    network = finished.checkpoint.build_network()
    made = make_contract(finished.checkpoint, network, "streets", measured=measured)
    assert made.input.range_px == (240, 480, 960)
    assert Contract.from_json(made.to_json()) == made
    card = model_card(finished.checkpoint, made, measured)
    assert "for images of 240 to 960 px in the longer side; others are scaled to 480" in card
    assert "| 0.5 | 240 | 69.00 |" in card


@pytest.mark.parametrize("found", [[], {"learned_side_px": 480}, {**RANGE, "range_to_px": "9"}])
def test_a_range_that_is_none_is_refused(found: object) -> None:
    with pytest.raises(ContractError, match="measure it again"):
        with_range(InputSpec(), found)
    assert with_range(InputSpec(), None) == InputSpec()
