"""`fcn train` and `fcn evaluate` as a user runs them."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from PIL import Image

from cli.main import build_parser, main
from fcn_client import FcnClient
from tests.tiny_models import contract, write_model
from tests.unit.training import brightest
from tests.unit.training.evaluation.fake_server import (
    FakeServer,
    free_port,
    label_map_reply,
    model,
    problem,
)
from tests.unit.training.recipes import raw_recipe
from training.analysis.masking import Mask
from training.analysis.upper_bound import PAPER_MEAN_IU, Method
from training.datasets import drawn
from training.evaluation.metrics import Absent

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("brightest")
    brightest.write(root)
    return root


@pytest.fixture
def onnx(tmp_path: Path) -> str:
    return str(write_model(tmp_path))


def evaluate(source: str, root: Path, *words: str) -> int:
    return main(["evaluate", source, "--data-root", str(root), *words])


def recipe(tmp_path: Path, root: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw_recipe(root)))
    return str(path)


def test_training_learns(tmp_path: Path, capsys: Capture) -> None:
    """From nothing to scenes told apart: always `road`, the best guess, would score 0.12."""
    root = tmp_path / "streets"
    words = [str(root), "--train", "24", "--val", "4", "--test", "4"]
    assert drawn.main([*words, "--height", "40", "--width", "56"]) == 0
    run = str(tmp_path / "run")
    changes = [
        f"data.root={root}",
        "augment.crop_height=40",
        "augment.crop_width=56",
        "network.dropout=0.1",
        "schedule.epochs=16",
        "schedule.batch_size=4",
        "schedule.val_every_epochs=8",
        "schedule.ema_decay=0.9",
        "optimizer.backbone_lr=1e-2",
        "optimizer.head_lr=1e-2",
    ]
    assert main(["train", recipe(tmp_path, root), "--run", run, "--set", *changes]) == 0
    out, err = capsys.readouterr()
    assert f"{run}/last.pt: iteration 96" in out
    assert re.search(r"^road +\d\d\.\d\d$", out, re.M) and "\nmean IU " in out
    assert "96/96" in err  # the progress bar
    with (tmp_path / "run/log.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.7 * losses[0]
    assert evaluate(f"{run}/last.pt", root, "--json", "--min-mean-iu", "0.4") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mean_iu"] > 0.4
    assert report["class_iu"]["road"] > 0.8


def test_train_refuses_and_resumes(tmp_path: Path, streets: Path, capsys: Capture) -> None:
    words = ["train", recipe(tmp_path, streets), "--run", str(tmp_path / "run")]
    assert main([*words, "--set", "schedule.epochs=1"]) == 0
    assert main([*words, "--set", "schedule.epochs=1"]) == 1
    assert "last.pt exists: continue it with --resume" in capsys.readouterr().err
    assert main([*words, "--set", "schedule.epochs=1", "--resume"]) == 0
    assert main([*words, "--resume"]) == 1
    assert "schedule.epochs (was 1, is 2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (["schedule.epoch=1"], "schedule.epoch: "),
        (["data.root=/no/such/folder"], "cannot read the class list /no/such/folder"),
        (["data.dataset=coco"], "unknown data set 'coco'"),
        (["init.imagenet=/no/such/file.npz"], "init.imagenet: there is no file"),
    ],
)
def test_train_fails_in_one_line(
    tmp_path: Path, streets: Path, capsys: Capture, changes: list[str], complaint: str
) -> None:
    words = ["train", recipe(tmp_path, streets), "--run", str(tmp_path / "run")]
    assert main([*words, "--set", *changes]) == 1
    err = capsys.readouterr().err
    assert err.startswith("fcn: ")
    assert complaint in err
    assert err.count("\n") == 1


def test_table(onnx: str, images: Path, capsys: Capture) -> None:
    assert evaluate(onnx, images) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{onnx} on brightest, test: {brightest.COUNT} images" in lines[0]
    assert [line.split()[:2] for line in lines[3:6]] == [
        ["red", "100.00"],
        ["green", "100.00"],
        ["blue", "100.00"],
    ]
    assert lines[7:] == [
        "pixel accuracy         100.00",
        "mean accuracy          100.00",
        "mean IU                100.00",
        "frequency weighted IU  100.00",
    ]


def test_json(onnx: str, images: Path, capsys: Capture) -> None:
    assert evaluate(onnx, images, "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report.pop("seconds") > 0
    assert report == {
        "source": onnx,
        "source_kind": "onnx",
        "dataset": "brightest",
        "split": "test",
        "images": brightest.COUNT,
        "failed": [],
        "not_asked": 0,
        "absent": "nan",
        "mask": "all",
        "flip": False,
        "unlabelled_classes": [],
        "pixel_accuracy": 1.0,
        "mean_accuracy": 1.0,
        "mean_iu": 1.0,
        "frequency_weighted_iu": 1.0,
        "class_iu": {"red": 1.0, "green": 1.0, "blue": 1.0},
    }
    assert "6/6" in err  # the progress bar


def test_absent_classes(onnx: str, tmp_path: Path, capsys: Capture) -> None:
    """One image, half of it red and labelled so, half green: green is predicted, not labelled."""
    brightest.write(tmp_path)
    for kind in ("images", "labels"):
        for path in (tmp_path / "test" / kind).iterdir():
            path.unlink()
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[:2, :, 0] = rgb[2:, :, 1] = 200
    Image.fromarray(rgb).save(tmp_path / "test/images/0.png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "test/labels/0.png")
    for absent, mean_iu, green in (
        ("exclude_gt", 1 / 2, None),
        ("nan", 1 / 4, 0),
        ("zero", 1 / 6, 0),
    ):
        limit = ["--min-mean-iu", str(mean_iu - 0.01)]
        assert evaluate(onnx, tmp_path, "--json", "--absent", absent, *limit) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["absent"] == absent
        assert report["mean_iu"] == pytest.approx(mean_iu)
        assert report["class_iu"]["green"] == green
    assert evaluate(onnx, tmp_path, "--absent", "exclude_gt") == 0
    green_row, mean_row = (
        line.split()
        for line in capsys.readouterr().out.splitlines()
        if line.startswith(("green", "mean IU"))
    )
    assert green_row[1] == "-"
    assert mean_row[-1] == "50.00"


def test_below_the_wanted_mean_iu(tmp_path: Path, images: Path, capsys: Capture) -> None:
    worse = str(write_model(tmp_path, bias=(40.0, 0.0, 0.0)))
    assert evaluate(worse, images, "--min-mean-iu", "0.99") == 1
    out, err = capsys.readouterr()
    assert "mean IU" in out  # the table all the same
    assert "is below --min-mean-iu 0.99" in err
    assert evaluate(worse, images, "--min-mean-iu", "0.1") == 0


def test_server(server: FakeServer, images: Path, capsys: Capture) -> None:
    server.listing = {"models": [model("a"), model("b", default=False)]}
    assert evaluate(server.url, images, "--json", "--in-flight", "2") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["mean_iu"], report["source_kind"]) == (1.0, "rest")
    assert evaluate(f"{server.url}?model=b", images, "--json") == 0
    assert evaluate(server.url, images, "--model", "b", "--json") == 0
    assert [query["model"] for query in server.posts] == [["a"]] * 6 + [["b"]] * 12


def test_an_image_without_an_answer(server: FakeServer, images: Path, capsys: Capture) -> None:
    """The others are scored, it is named, and the exit code says that something is missing."""
    slow = (images / "test/images/1.png").read_bytes()
    server.segment = lambda body: (
        problem(504, "deadline-exceeded") if body == slow else server.label(body)
    )
    assert evaluate(server.url, images, "--json") == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["images"], report["mean_iu"]) == (brightest.COUNT - 1, 1.0)
    (failed,) = report["failed"]
    assert failed["image"].endswith("1.png") and "tune it" in failed["error"]
    assert "1 of 6 images were not scored" in err
    assert evaluate(server.url, images) == 1
    assert "1.png: Out of tune" in capsys.readouterr().out


def test_a_server_that_answers_in_another_size(
    server: FakeServer, images: Path, capsys: Capture
) -> None:
    small: Any = np.zeros((3, 4), np.uint8)
    server.segment = lambda _body: label_map_reply(small)
    assert evaluate(server.url, images) == 1
    err = capsys.readouterr().err
    assert "fcn: " in err
    assert "0.png: the answer is 3x4 but the label is 20x31" in err


@pytest.fixture
def objects(images: Path, tmp_path: Path) -> list[str]:
    """Words for the same images with red as the background."""
    path = tmp_path / "objects.yaml"
    path.write_text((images / "classes.yaml").read_text().replace("red", "background"))
    return ["--classes", str(path)]


def test_a_mask_over_the_images(
    tmp_path: Path, images: Path, objects: list[str], capsys: Capture
) -> None:
    """The network names the brightest colour, and is right where it sees it."""
    plain = contract("tiny")
    classes = (replace(plain.classes[0], name="background"), *plain.classes[1:])
    onnx = str(write_model(tmp_path, model_contract=replace(plain, classes=classes)))
    assert evaluate(onnx, images, *objects) == 0
    assert "mean IU without background  100.00" in capsys.readouterr().out
    assert evaluate(onnx, images, *objects, "--mask", "background", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mask"] == "background"
    assert report["mean_iu_without_background"] < 0.5
    assert evaluate(onnx, images, *objects, "--shown", "foreground") == 0
    assert "test, foreground alone: " in capsys.readouterr().out


def test_a_server_takes_no_mask(
    server: FakeServer, images: Path, objects: list[str], capsys: Capture
) -> None:
    server.listing = {"models": [model("a", classes=["background", "green", "blue"])]}
    assert evaluate(server.url, images, *objects, "--mask", "shape") == 1
    assert "to keep shape only, give the checkpoint or the ONNX file" in capsys.readouterr().err


def test_another_class_list(onnx: str, streets: Path, capsys: Capture) -> None:
    assert evaluate(onnx, streets) == 1
    err = capsys.readouterr().err
    assert "has 3 classes (red, green, blue), the data set 'drawn streets' 4" in err
    assert "give the class list it was trained on" in err


def test_a_class_list_of_ones_own(tmp_path: Path, onnx: str, images: Path, capsys: Capture) -> None:
    listed = tmp_path / "list.yaml"
    listed.write_text((images / "classes.yaml").read_text().replace("red", "rouge"))
    assert evaluate(onnx, images, "--classes", str(listed)) == 1
    assert "class 0 is 'red' for" in capsys.readouterr().err


def test_without_a_class_list_it_is_camvid(
    tmp_path: Path, onnx: str, images: Path, capsys: Capture
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test").symlink_to(images / "test")
    assert evaluate(onnx, tmp_path / "data") == 1
    assert "CamVid" in capsys.readouterr().err
    assert evaluate(onnx, tmp_path / "data", "--dataset", "folder") == 1
    assert "cannot read the class list" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "words", "complaint"),
    [
        ("none.pt", [], "there is no checkpoint none.pt"),
        ("none.onnx", [], "there is no file none.onnx"),
        ("model.txt", [], "model.txt: want a checkpoint (.pt), an exported model (.onnx), or a"),
        ("ftp://host/x", [], "ftp://host/x: want a checkpoint"),
        ("http://", [], "want scheme://host:port"),
        ("http://host?modle=x", [], "only ?model=NAME has a meaning"),
        ("none.onnx", ["--model", "a"], "--model is for servers"),
        ("none.onnx", ["--api-key-file", __file__], "characters that cannot be sent: write the"),
        ("none.onnx", ["--api-key-file", "nowhere"], "nowhere cannot be read: No such file"),
        ("none.onnx", ["--split", "night"], "night/images is missing"),
        ("none.onnx", ["--dataset", "coco"], "unknown data set 'coco'"),
    ],
)
def test_wrong_sources(
    images: Path, capsys: Capture, source: str, words: list[str], complaint: str
) -> None:
    assert evaluate(source, images, *words) == 1
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1


def test_a_key_is_for_servers(images: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "key").write_text("0123456789abcdef")
    assert evaluate("none.onnx", images, "--api-key-file", str(tmp_path / "key")) == 1
    assert "--api-key-file is for servers, and none.onnx is a file" in capsys.readouterr().err


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_no_server(
    images: Path, capsys: Capture, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FcnClient, "_sleep", staticmethod(lambda _seconds: None))
    url = f"{scheme}://127.0.0.1:{free_port()}"
    assert evaluate(url, images) == 1
    assert "fcn: cannot reach " in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--in-flight", "0"],
        ["--deadline", "0"],
        ["--threads", "-1"],
        ["--min-mean-iu", "65"],
        ["--in-flight", "x"],
    ],
)
def test_wrong_usage(onnx: str, images: Path, words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as raised:
        evaluate(onnx, images, *words)
    assert raised.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_the_commands_offer_what_the_functions_take() -> None:
    """Written out in cli/, which must not import numpy to print its help."""
    words = {
        "evaluate": ["evaluate", "x.pt", "--data-root", "."],
        "upper-bound": ["upper-bound", "folder", "--data-root", "."],
    }
    parser = build_parser(list(words))
    for command in words.values():
        for absent in get_args(Absent):
            assert parser.parse_args([*command, "--absent", absent]).absent == absent
    for mask in get_args(Mask):
        assert parser.parse_args([*words["evaluate"], "--mask", mask]).mask == mask
    for method in get_args(Method):
        assert parser.parse_args([*words["upper-bound"], "--method", method]).method == method
    assert tuple(parser.parse_args(words["upper-bound"]).factors) == tuple(PAPER_MEAN_IU)
