"""Ground truth scored against its own coarse form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.main import main
from tests.unit.training import miniatures
from training.analysis.upper_bound import PAPER_MEAN_IU, Method, coarsened, upper_bounds
from training.datasets import DatasetError, SegmentationDataset, open_dataset

VOID = 255


def test_majority_by_hand() -> None:
    """3x5 in cells of 2: the last row and column of cells are cut short."""
    target = np.array(
        [
            [1, 1, 0, 2, 2],
            [1, 0, VOID, 2, 0],
            [VOID, VOID, 0, 0, 1],
        ],
        np.uint8,
    )
    expected = [[1, 1, 2, 2, 0], [1, 1, 2, 2, 0], [0, 0, 0, 0, 1]]
    # Cell (0,2) holds a 2 and a 0: of equals the lowest. Cell (1,0) holds void alone: 0.
    assert coarsened(target, 2, 3).tolist() == expected


@given(
    seed=st.integers(0, 1000),
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    factor=st.integers(1, 9),
    method=st.sampled_from(["majority", "nearest"]),
)
def test_against_a_plain_loop(
    seed: int, height: int, width: int, factor: int, method: Method
) -> None:
    rng = np.random.default_rng(seed)
    target = rng.choice(np.array([0, 1, 2, VOID], np.uint8), (height, width))
    found = coarsened(target, factor, 3, method)
    assert found.shape == target.shape
    assert found.dtype == np.uint8
    for top in range(0, height, factor):
        for left in range(0, width, factor):
            cell = np.s_[top : top + factor, left : left + factor]
            counts = [int((target[cell] == c).sum()) for c in range(3)]
            wanted = counts.index(max(counts))
            middle = target[min(top + factor // 2, height - 1), min(left + factor // 2, width - 1)]
            if method == "nearest" and middle != VOID:
                wanted = int(middle)
            assert (found[cell] == wanted).all()


def test_a_factor_below_one() -> None:
    with pytest.raises(ValueError, match="factor 0: want 1 or more"):
        coarsened(np.zeros((2, 2), np.uint8), 0, 2)


def test_bounds_fall_with_the_factor(streets: Path) -> None:
    data = open_dataset("folder", streets, "train")
    found = upper_bounds(data, [2, 8, 32], progress=False)
    bounds = [confusion.scores().mean_iu for confusion in found.values()]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] > 0.85 > bounds[2]


def test_each_label_is_read_once(streets: Path) -> None:
    whole = open_dataset("folder", streets, "val")

    class Counting(SegmentationDataset):
        reads = 0

        def target(self, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
            self.reads += 1
            return super().target(index)

    data = Counting(whole.info, whole.pairs, whole.split)
    upper_bounds(data, [2, 4, 8], progress=False)
    assert data.reads == len(whole)


def test_table(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["upper-bound", "folder", "--data-root", str(streets)]
    assert main([*words, "--factors", "32", "5"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert (
        lines[0] == "ground truth of drawn streets, val: 2 images, down- and upsampled (majority)"
    )
    assert [line.split()[0] for line in lines[3:]] == ["32", "5"]
    assert lines[3].endswith("86.1")
    assert lines[4].endswith(" -")
    assert "2/2" in err  # the progress bar


def test_json(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["upper-bound", "folder", "--data-root", str(streets), "--split", "train", "--json"]
    assert main([*words, "--method", "nearest", "--absent", "zero"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["split"], report["images"]) == ("train", 6)
    assert (report["method"], report["absent"]) == ("nearest", "zero")
    assert [row["factor"] for row in report["factors"]] == list(PAPER_MEAN_IU)
    data = open_dataset("folder", streets, "train")
    four = upper_bounds(data, [4], "nearest", progress=False)[4].scores("zero")
    assert report["factors"][-1]["mean_iu"] == pytest.approx(four.mean_iu)
    assert set(report["factors"][-1]["class_iu"]) == {"sky", "house", "road", "tree"}


def test_wrong_usage(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["upper-bound", "folder", "--data-root", str(streets)]
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--factors", "0"])
    assert exit_.value.code == 2
    assert "0: want a whole number, 1 or more" in capsys.readouterr().err
    assert main([*words, "--split", "night"]) == 1
    assert "night" in capsys.readouterr().err


def test_two_labellings_have_no_one_bound(tmp_path: Path) -> None:
    miniatures.siftflow(tmp_path, {"test": ["forest_3"]})
    data = open_dataset("siftflow_both", tmp_path, "test")
    with pytest.raises(DatasetError, match="several labellings: take the data set of one of"):
        upper_bounds(data, [2], progress=False)


@pytest.mark.parametrize("left", ["no image", "an empty folder", "no folder"])
def test_labels_are_enough(
    tmp_path: Path, streets: Path, left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No image is read, so none need be there."""
    shutil.copytree(streets, tmp_path, dirs_exist_ok=True)
    images = tmp_path / "val/images"
    shutil.rmtree(images)
    if left != "no folder":
        images.mkdir()
    words = ["upper-bound", "folder", "--factors", "8", "--data-root"]
    assert main([*words, str(tmp_path)]) == 0
    found = capsys.readouterr().out
    assert main([*words, str(streets)]) == 0
    assert capsys.readouterr().out == found
    with pytest.raises(
        DatasetError, match=r"val/images holds no image of split 'val', .*0000\.jpg"
    ):
        open_dataset("folder", tmp_path, "val")


def test_labels_of_a_listed_data_set_are_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    miniatures.voc(tmp_path, 2012, {"val": ["a", "b"]})
    shutil.rmtree(tmp_path / "VOCdevkit/VOC2012/JPEGImages")
    assert main(["upper-bound", "voc2012", "--data-root", str(tmp_path), "--factors", "1"]) == 0
    assert "val: 2 images" in capsys.readouterr().out
