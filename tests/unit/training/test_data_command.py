"""`fcn data`: what it finds, what it says is missing, and its exit codes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli.main import main
from tests.unit.training import miniatures
from training.datasets import DATASETS, drawn


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded: whoever tries fails."""

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("a network connection was tried")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def checked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["data", "check", *words, "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, report


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == list(DATASETS)
    assert main(["data", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["datasets"]
    assert {row["name"]: row["splits"] for row in rows}["voc2012"]["val"] == 1449


def test_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    miniatures.voc(tmp_path, 2012, {"train": ["a", "b"]})
    code, report = checked(capsys, "voc2012", str(tmp_path))
    assert code == 0
    assert report["usable"]
    assert report["classes"] == 21
    assert "Flickr" in report["licence"]
    train, val, _ = report["splits"]
    assert train == {
        "name": "train",
        "images": 2,
        "expected": 1464,
        "missing_files": 0,
        "read": 1,
        "problem": "",
        "problems": [],
        "warnings": [],
        "class_shares": None,
        "void_share": None,
        "usable": True,
    }
    assert not val["usable"]
    assert "val.txt: No such file" in val["problem"]


def test_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    miniatures.voc(tmp_path, 2012, {"train": ["a", "b"]})
    assert main(["data", "check", "voc2012", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert "PASCAL VOC 2012, 21 classes" in page
    assert "train     usable, 1 read; 2 images of 1464\n" in page
    assert "val       not usable; 0 images of 1449\n" in page
    assert "licence  no licence stated" in page
    assert "host.robots.ox.ac.uk/pascal/VOC/voc2012/" in page
    assert page.endswith("\nusable\n")


def test_a_named_split_must_be_usable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    miniatures.voc(tmp_path, 2012, {"train": ["a"]})
    assert checked(capsys, "voc2012", str(tmp_path), "--split", "train")[0] == 0
    code, report = checked(capsys, "voc2012", str(tmp_path), "--split", "train", "--split", "val")
    assert code == 1
    assert not report["usable"]


def test_missing_files_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    miniatures.voc(tmp_path, 2012, {"train": ["a", "b", "c"]})
    for name in "bc":
        (tmp_path / f"VOCdevkit/VOC2012/SegmentationClass/{name}.png").unlink()
    code, report = checked(capsys, "voc2012", str(tmp_path))
    assert code == 1
    assert report["splits"][0]["images"] == 3
    assert report["splits"][0]["missing_files"] == 2
    assert report["splits"][0]["problem"].endswith("SegmentationClass/b.png")


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "sbd", str(tmp_path)]) == 1
    page = capsys.readouterr().out
    assert "wants    benchmark_RELEASE/dataset" in page
    assert "SBD/download.html" in page
    assert "nothing is downloaded" in page
    assert page.endswith("\nnot usable\n")


def test_an_empty_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    miniatures.voc(tmp_path, 2012, {"train": []})
    code, report = checked(capsys, "voc2012", str(tmp_path), "--split", "train")
    assert code == 1
    assert report["splits"][0]["problem"] == "it is empty"


def test_read_all_finds_the_damaged_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    miniatures.sbd(tmp_path, {"train": ["a", "b"]})
    (tmp_path / "benchmark_RELEASE/dataset/cls/b.mat").write_bytes(b"broken")
    words = ["sbd", str(tmp_path), "--split", "train"]
    assert checked(capsys, *words)[0] == 0
    code, report = checked(capsys, *words, "--read-all")
    assert code == 1
    assert report["splits"][0]["read"] == 1
    assert "b.mat" in report["splits"][0]["problem"]


def test_every_problem_in_one_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Seven of nine samples are wrong in six ways; none keeps the others from being found."""
    drawn.write(tmp_path, "train", 9, 40, 56, seed=0)
    labels, images = tmp_path / "train/labels", tmp_path / "train/images"
    (labels / "0000.png").unlink()
    (labels / "0001.png").write_bytes(b"hello")
    (images / "0001.jpg").write_bytes(b"hello")
    (images / "0002.jpg").write_bytes((images / "0002.jpg").read_bytes()[:200])
    Image.new("L", (56, 40), 9).save(labels / "0003.png")
    Image.new("L", (56, 40), 7).save(labels / "0004.png")
    Image.new("L", (5, 4), 0).save(labels / "0005.png")
    Image.new("LA", (56, 40)).save(labels / "0006.png")
    words = ["folder", str(tmp_path), "--split", "train", "--read-all"]
    code, report = checked(capsys, *words)
    assert code == 1
    (split,) = report["splits"]
    assert {problem["kind"]: problem["count"] for problem in split["problems"]} == {
        "missing": 1,
        "image": 2,
        "label": 2,
        "class": 2,
        "size": 1,
    }
    assert (split["images"], split["missing_files"], split["read"]) == (9, 1, 2)
    assert main(["data", "check", *words]) == 1
    page = capsys.readouterr().out
    assert "train  not usable; 9 images\n" in page
    assert "2: labels hold what is no class id\n" in page
    for name in ("0000.png", "0001.png", "0001.jpg", "0003.png", "0004.png", "0005.png"):
        assert name in page


def test_of_many_problems_of_a_kind_the_first_few_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn.write(tmp_path, "train", 8, 40, 56, seed=0)
    for path in (tmp_path / "train/labels").iterdir():
        path.write_bytes(b"hello")
    assert main(["data", "check", "folder", str(tmp_path), "--read-all"]) == 1
    page = capsys.readouterr().out
    assert "8: labels cannot be read\n" in page
    assert page.count("cannot read the label") == 5
    assert "and 3 more\n" in page


def test_a_name_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn.write(tmp_path, "train", 1, 40, 56, seed=0)
    folder = os.fsencode(tmp_path / "train/images")
    os.rename(folder + b"/0000.jpg", folder + b"/\xff\nx.jpg")
    words = [sys.executable, "-m", "cli.main", "data", "check", "folder", str(tmp_path)]
    for more in ([], ["--json"]):
        done = subprocess.run([*words, *more], capture_output=True, text=True)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert r"udcff" in done.stdout


def test_folder_with_its_own_classes(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = checked(capsys, "folder", str(streets), "--read-all")
    assert code == 0
    assert all(split["read"] == split["images"] > 0 for split in report["splits"])


@pytest.mark.parametrize(
    ("name", "place", "line"),
    [
        ("coco", "", "unknown data set 'coco': want one of ade20k, camvid"),
        ("voc2012", "nowhere", "nowhere is no folder: voc2012 wants VOCdevkit/VOC2012, from http"),
        ("folder", "", "cannot read the class list"),
    ],
)
def test_refusals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, place: str, line: str
) -> None:
    assert main(["data", "check", name, str(tmp_path / place)]) == 1
    assert line in capsys.readouterr().err


def test_an_action_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["data"])
    assert exit_.value.code == 2
