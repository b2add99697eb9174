"""Data that cannot teach: classes without a pixel, masks of 0 and 255, and void alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cli.main import main
from tests.unit.repository.pages import ROOT
from tests.unit.training import miniatures
from tests.unit.training.recipes import Run, changed, raw_recipe
from training.config import parse_config
from training.datasets import DatasetError, open_dataset
from training.datasets import coverage as coverage_module
from training.datasets.base import VOID
from training.datasets.coverage import Coverage
from training.train import train

Capture = pytest.CaptureFixture[str]

ASKED = "hold 0 and 255, and 255 is void: is it meant as 'roof'? Then make it 1"


def masks(root: Path, *, classes: int = 2, **splits: list[list[int]]) -> Path:
    """A folder data set whose label i of a split has the values listed, a column each."""
    names = ["ground", "roof", "tree", "car"][:classes]
    listed = [{"name": name, "color": [n, 9, 9]} for n, name in enumerate(names)]
    text = yaml.safe_dump({"name": "x", "licence": "CC0", "classes": listed})
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.yaml").write_text(text)
    for split, labels in splits.items():
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for index, values in enumerate(labels):
            label = np.repeat(np.array(values, np.uint8), 40 // len(values))[None].repeat(40, 0)
            Image.fromarray(label).save(root / split / f"labels/{index}.png")
            Image.fromarray(label).convert("RGB").save(root / split / f"images/{index}.jpg")
    return root


def checked(capsys: Capture, root: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    words = ("data", "check", "folder", str(root), "--read-all", *words)
    code = main(words)
    page = capsys.readouterr().out
    main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out), page


def row(page: str, name: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"{name} ")]
    return line.removeprefix(name).split()


def test_the_shares_of_every_class(tmp_path: Path, capsys: Capture) -> None:
    root = masks(tmp_path, train=[[0, 0, 0, 1], [0, 0, VOID, VOID]], val=[[1]])
    code, report, page = checked(capsys, root, "--split", "train", "--split", "val")
    assert code == 0
    train, val = report["splits"]
    assert train["class_shares"] == {"ground": 5 / 6, "roof": 1 / 6}
    assert train["void_share"] == 1 / 4
    assert val["class_shares"] == {"ground": 0, "roof": 1}
    assert row(page, "of labelled pixels [%]") == ["train", "val"]
    assert row(page, "ground") == ["83.33", "none"]
    assert row(page, "roof") == ["16.67", "100.00"]
    assert row(page, "void, of all pixels") == ["25.00", "0.00"]
    assert (train["warnings"], len(val["warnings"])) == ([], 1)
    assert "'val' has no pixel of ground (1 of 2 classes, in 1 labels)" in val["warnings"][0]
    assert f"warning: {val['warnings'][0]}" in page


def test_masks_of_0_and_255(tmp_path: Path, capsys: Capture) -> None:
    root = masks(tmp_path, train=[[0, VOID], [VOID, 0]])
    code, report, page = checked(capsys, root, "--split", "train")
    assert code == 0
    (warning,) = report["splits"][0]["warnings"]
    assert "has no pixel of roof (1 of 2 classes" in warning
    assert ASKED in warning and ASKED in page


def snippet(heading: str) -> str:
    """The Python block of docs/training.md below a heading."""
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    return page.split("```python\n")[1].split("```")[0]


def test_the_page_that_it_names_mends_them(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = masks(tmp_path / "data/roofs", train=[[0, VOID], [VOID, 0]])
    monkeypatch.chdir(tmp_path)
    exec(snippet("Masks of 0 and 255"), {})
    _, report, _ = checked(capsys, root, "--split", "train")
    assert report["splits"][0]["class_shares"] == {"ground": 0.5, "roof": 0.5}


def test_the_page_mends_palettes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = masks(tmp_path / "data/roofs", classes=3, train=[[0, 2]])
    path = root / "train/labels/0.png"
    renumbered = Image.fromarray((np.array(Image.open(path)) > 0).astype(np.uint8))
    renumbered.putpalette([0, 0, 0, 2, 2, 2])
    renumbered.save(path)
    with pytest.raises(DatasetError, match="see 'Labels' in docs/training.md"):
        open_dataset("folder", root, "train")[0]
    monkeypatch.chdir(tmp_path)
    exec(snippet("Labels"), {})
    assert set(open_dataset("folder", root, "train")[0].target.flat) == {0, 2}


@pytest.mark.parametrize("other", [[0, 1], [0, 1, VOID, VOID]])
def test_nothing_is_asked_of_good_masks(tmp_path: Path, capsys: Capture, other: list[int]) -> None:
    root = masks(tmp_path, train=[[0, VOID], other])
    assert checked(capsys, root, "--split", "train")[1]["splits"][0]["warnings"] == []


def test_one_class_alone(tmp_path: Path, capsys: Capture) -> None:
    root = masks(tmp_path, classes=1, train=[[0, VOID]])
    (warning,) = checked(capsys, root, "--split", "train")[1]["splits"][0]["warnings"]
    assert "every labelled pixel of split 'train' is ground, the only class" in warning


def test_some_labels_are_void_throughout(tmp_path: Path, capsys: Capture) -> None:
    root = masks(tmp_path, train=[[VOID], [0, 1], [VOID]])
    code, report, _ = checked(capsys, root, "--split", "train")
    assert (code, report["splits"][0]["warnings"]) == (0, ["2 labels are void throughout"])


def test_void_alone_cannot_be_used(tmp_path: Path, capsys: Capture) -> None:
    root = masks(tmp_path, train=[[VOID], [VOID]])
    code, report, page = checked(capsys, root, "--split", "train")
    assert code == 1
    (problem,) = report["splits"][0]["problems"]
    assert problem["kind"] == "empty"
    assert "every pixel of its 2 labels is 255, void. Is 255 meant as a class?" in page


def test_without_read_all_nothing_is_said_of_classes(tmp_path: Path, capsys: Capture) -> None:
    root = masks(tmp_path, train=[[0, VOID]])
    assert main(["data", "check", "folder", str(root), "--split", "train"]) == 0
    assert "shares of the pixels: with --read-all" in capsys.readouterr().out


def test_two_labellings_are_counted_apart(tmp_path: Path) -> None:
    miniatures.siftflow(tmp_path, {"trainval": ["coast_1"]})
    data = open_dataset("siftflow_both", tmp_path, "trainval")
    coverage = Coverage.of(data)
    target = data[0].target
    assert coverage.shares["geo/sky"] == (target[..., 1] == 0).sum() / (target[..., 1] < 3).sum()
    assert "sem/awning" in coverage.shares
    assert len(coverage.shares) == 36


def test_it_stops_when_every_class_was_seen(tmp_path: Path) -> None:
    root = masks(tmp_path, train=[[0, 1]] * 9)
    assert Coverage.of(open_dataset("folder", root, "train")).labels == 1


def test_it_stops_when_enough_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_module, "_ENOUGH", 3)
    root = masks(tmp_path, train=[[0]] * 9, val=[[VOID]] * 9)
    found = Coverage.of(open_dataset("folder", root, "train"))
    assert found.labels == 3 and "in 3 labels" in found.warning
    with pytest.raises(DatasetError, match="every pixel of its 9 labels"):
        Coverage.of(open_dataset("folder", root, "val"))


@pytest.mark.parametrize(
    ("train_masks", "val_masks", "warnings"),
    [
        ([[0, 1]], [[0, 1]], []),
        ([[0, VOID]], [[0, 1]], [f"'train' has no pixel of roof.*{ASKED.replace('?', '.')}"]),
        ([[0, 1]], [[1]], ["'val' has no pixel of ground"]),
        ([[0]], [[1]], ["'train' has no pixel of roof", "'val' has no pixel of ground"]),
    ],
)
def test_train_warns(
    tmp_path: Path,
    capsys: Capture,
    train_masks: list[list[int]],
    val_masks: list[list[int]],
    warnings: list[str],
) -> None:
    root = masks(tmp_path / "data", train=train_masks * 2, val=val_masks)
    config = parse_config(
        changed(raw_recipe(root), {"schedule__epochs": 1, "data__allow_absent": True}),
        "test recipe",
    )
    train(config, tmp_path / "run", run_log=None, stop_after=1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning: split" in line]
    assert len(lines) == len(warnings)
    for line, warning in zip(lines, warnings, strict=True):
        assert re.search(f"fcn: warning: split {warning}", line)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0], "'train' has no pixel of roof .1 of 2 classes, .* data.allow_absent=true"),
        ([0, VOID], f"no pixel of roof.*{ASKED.replace('?', '.')}.* data.allow_absent=true"),
    ],
)
def test_a_class_that_train_lacks_is_refused(
    tmp_path: Path, values: list[int], message: str
) -> None:
    root = masks(tmp_path / "data", train=[values] * 2, val=[[0, 1]])
    config = parse_config(changed(raw_recipe(root), {}), "test recipe")
    with pytest.raises(DatasetError, match=message):
        train(config, tmp_path / "run", run_log=None)
    assert not (tmp_path / "run").exists()


def test_of_a_large_split_a_part_is_read_and_nothing_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(coverage_module, "_ENOUGH", 3)
    root = masks(tmp_path / "data", train=[[0]] * 4, val=[[0, 1]])
    config = parse_config(changed(raw_recipe(root), {}), "test recipe")
    train(config, tmp_path / "run", run_log=None, stop_after=1)
    assert "'train' has no pixel of roof" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "val"])
def test_train_refuses_void_alone(tmp_path: Path, split: str) -> None:
    splits: Any = {"train": [[0, 1]] * 2, "val": [[0, 1]], split: [[VOID]] * 2}
    root = masks(tmp_path / "data", **splits)
    config = parse_config(changed(raw_recipe(root), {}), "test recipe")
    with pytest.raises(DatasetError, match=f"split '{split}' has no labelled pixel.*Is 255 meant"):
        train(config, tmp_path / "run", run_log=None)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_says_it_no_more(tmp_path: Path, capsys: Capture) -> None:
    root = masks(tmp_path / "data", train=[[0]] * 2, val=[[0, 1]])
    config = parse_config(changed(raw_recipe(root), {"data__allow_absent": True}), "test recipe")
    train(config, tmp_path / "run", run_log=None, stop_after=1)
    capsys.readouterr()
    train(config, tmp_path / "run", run_log=None, stop_after=1, resume=True)
    assert "warning: split" not in capsys.readouterr().err


def test_evaluate_warns_of_classes_that_it_did_not_test(
    tmp_path: Path, finished: Run, streets: Path, capsys: Capture
) -> None:
    root = masks(tmp_path, test=[[0, VOID]])
    (root / "classes.yaml").write_text((streets / "classes.yaml").read_text())
    assert main(["evaluate", str(finished.last), "--data-root", str(root), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["unlabelled_classes"] == ["house", "road", "tree"]
    assert "no pixel of split 'test' is labelled house, road, tree (3 of 4 classes)" in err
    assert "--absent nan" in err
    main(["evaluate", str(finished.last), "--data-root", str(streets)])
    assert "warning" not in capsys.readouterr().err
