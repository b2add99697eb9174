"""Files of data sets under the names that people have: one rule for every format."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.main import main
from tests.unit.training import miniatures
from training.adopt import _middles
from training.datasets import DatasetError, open_dataset
from training.datasets.folder import folder_pairs
from training.datasets.format import read_ids
from training.quantization import Calibration

NFC, NFD = (unicodedata.normalize(form, "café Ångström") for form in ("NFC", "NFD"))
MAC = b"\0\5\x16\7" + bytes(60)
"""How macOS' `._x` files begin."""


def write(folder: Path, name: str | bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = os.path.join(os.fsencode(folder), os.fsencode(name))
    with open(path, "wb") as file:
        Image.fromarray(np.zeros((5, 7), np.uint8)).save(file, "PNG")


def folder(root: Path, images: Sequence[str | bytes], labels: Sequence[str | bytes]) -> Path:
    for name in images:
        write(root / "train/images", name)
    for name in labels:
        write(root / "train/labels", name)
    (root / "classes.yaml").write_text(
        "name: x\nlicence: CC0\nclasses:\n  - {name: a, color: [1, 2, 3]}\n"
    )
    return root


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("p.jpg", "p.PNG"),
        ("P.JPeG", "P.Png"),
        ("p.TIFF", "p.png"),
        (f"{NFD}.jpg", f"{NFC}.png"),
        (f"{NFC}.JPG", f"{NFD}.PNG"),
        ("a photo (1) of roofs.jpg", "a photo (1) of roofs.png"),
        ("2024.05.01-12.30.jpg", "2024.05.01-12.30.png"),
        ("a..jpg", "a..png"),
        ("new\nline.jpg", "new\nline.png"),
        ("-dash'quote\".jpg", "-dash'quote\".png"),
        ("[glob]*.jpg", "[glob]*.png"),
        (b"\xff\xfe.jpg", b"\xff\xfe.png"),
    ],
)
def test_a_pair(tmp_path: Path, image: str | bytes, label: str | bytes) -> None:
    root = folder(tmp_path, [image], [label])
    ((image_path, label_path),) = folder_pairs(root, "train")
    assert os.fsencode(image_path.name) == os.fsencode(image)
    assert os.fsencode(label_path.name) == os.fsencode(label)
    assert open_dataset("folder", root, "train")[0].target.shape == (5, 7)
    assert main(["data", "check", "folder", str(root), "--split", "train", "--read-all"]) == 0


@pytest.mark.parametrize("name", ["._p.png", "._p.jpg", ".hidden.png", ".DS_Store"])
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_names_that_begin_with_a_dot_are_passed_over(tmp_path: Path, name: str, kind: str) -> None:
    root = folder(tmp_path, ["p.png"], ["p.png"])
    (root / "train" / kind / name).write_bytes(MAC)
    assert len(folder_pairs(root, "train")) == 1


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", "notes.txt", "Icon\r", "p.png~"])
def test_other_files_are_passed_over(tmp_path: Path, name: str) -> None:
    root = folder(tmp_path, ["p.png"], ["p.png"])
    for kind in ("images", "labels"):
        (root / "train" / kind / name).write_bytes(b"x")
        (root / "train" / kind / f"folder of {name}.png").mkdir()
    assert len(folder_pairs(root, "train")) == 1


def test_a_folder_of_images_to_calibrate_or_compare_with(tmp_path: Path) -> None:
    for name in ("a.PNG", "b.png"):
        write(tmp_path, name)
    for name in ("._a.PNG", "Thumbs.db"):
        (tmp_path / name).write_bytes(MAC)
    (tmp_path / "c.png").mkdir()
    found = Calibration.from_folder(tmp_path, 9, 9)
    assert [read().shape for read in found.ranges] == [(5, 7, 3)] * 2
    assert [image.shape for image in _middles(tmp_path)] == [(5, 7, 3)] * 2


def test_links_are_followed(tmp_path: Path) -> None:
    root = folder(tmp_path / "real", ["p.png"], ["p.png"])
    linked = tmp_path / "linked"
    (linked / "train/images").mkdir(parents=True)
    (linked / "train/labels").symlink_to(root / "train/labels")
    (linked / "train/images/p.png").symlink_to(root / "train/images/p.png")
    shutil.copy(root / "classes.yaml", linked)
    assert len(open_dataset("folder", linked, "train")) == 1
    (root / "train/images/p.png").unlink()
    with pytest.raises(DatasetError, match=r"holds no image of split 'train', .*p\.png for one"):
        open_dataset("folder", linked, "train")


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (["a.jpg", "a.JPG"], ["a.png"], "share one label"),
        ([f"{NFC}.jpg", f"{NFD}.jpg"], [f"{NFC}.png"], "share one label"),
        (["a.jpg"], ["a.png", "a.PNG"], "are the same name but for case or accents"),
        (["a.jpg", "b.jpg"], ["a.png"], r"1 of 4 files .*b\.jpg has no label: .*b\.png is missing"),
        (["a.jpg"], ["A.png"], r"a\.jpg has no label: .*a\.png is missing"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, images: list[str], labels: list[str], complaint: str
) -> None:
    root = folder(tmp_path, images, labels)
    with pytest.raises(DatasetError, match=complaint):
        open_dataset("folder", root, "train")


def rename(root: Path) -> None:
    """Renames as if every file had been through a camera, a Mac and a zip."""
    for path in [p for p in root.rglob("*") if p.suffix in (".jpg", ".png", ".mat")]:
        path.rename(path.with_suffix(path.suffix.upper()))
        (path.parent / f"._{path.name}").write_bytes(MAC)
        (path.parent / f"._{path.name.upper()}").write_bytes(MAC)


def ade20k(root: Path) -> None:
    for name in (NFC, "b"):
        miniatures.save_image(root / f"images/training/{name}.jpg")
        miniatures.save_grey_png(root / f"annotations/training/{name}.png", np.ones((5, 7)))


def coco_stuff(root: Path) -> None:
    for name in ("000000000139", "b"):
        miniatures.save_image(root / f"images/train2017/{name}.jpg")
        miniatures.save_grey_png(root / f"annotations/train2017/{name}.png", np.zeros((5, 7)))


def cityscapes(root: Path) -> None:
    for name in ("ulm_1", "ulm_2"):
        miniatures.save_image(root / f"leftImg8bit/train/ulm/{name}_leftImg8bit.png")
        label = root / f"gtFine/train/ulm/{name}_gtFine_labelIds.png"
        miniatures.save_grey_png(label, np.full((5, 7), 7))
        (label.parent / f"{name}_gtFine_color.png").write_bytes(b"not read")


def voc(root: Path) -> None:
    miniatures.voc(root, 2012, {"train": [NFC, "b c"]})


@pytest.mark.parametrize("write", [ade20k, coco_stuff, cityscapes, voc])
def test_every_format_finds_them(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    rename(tmp_path)
    name = "voc2012" if write is voc else write.__name__
    data = open_dataset(name, tmp_path, "train")
    assert len(data) == 2
    for index in range(2):
        assert data[index].target.shape == (5, 7)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\nb", ["a", "b"]),
        ("a\nb\n".encode("utf-16"), ["a", "b"]),
        (b"a  \t\n\n  \nb \n\n", ["a", "b"]),
        (b"a\rb\r", ["a", "b"]),
        (b"a photo 1\nanother\n", ["a photo 1", "another"]),
        (
            b"2008_000008 -1\n2008_000015  1\n2008_000019  0\r\n",
            ["2008_000008", "2008_000015", "2008_000019"],
        ),
        (f"{NFD}\n".encode(), [NFD]),
        ("a\u2028b\x85c\n".encode(), ["a\u2028b\x85c"]),
    ],
)
def test_split_lists(tmp_path: Path, body: bytes, names: list[str]) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(body)
    assert read_ids(path) == names


def test_one_name_in_two_forms_is_listed_twice(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text(f"{NFC}\n{NFD}\n")
    with pytest.raises(DatasetError, match="twice"):
        read_ids(path)


def test_a_second_label_of_an_image_is_found_by_the_same_rule(tmp_path: Path) -> None:
    miniatures.siftflow(tmp_path, {"trainval": [NFC, "b"]})
    for path in list((tmp_path / "GeoLabels").rglob("*.mat")):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.stem) + ".MAT"))
    data = open_dataset("siftflow_both", tmp_path, "trainval")
    assert [data[index].target.shape for index in range(2)] == [(5, 7, 2)] * 2


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, ["p.png"], ["p.png"])

    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    for patched in ("pathlib.Path.iterdir", "os.scandir"):
        with monkeypatch.context() as patch:
            patch.setattr(patched, refuse)
            with pytest.raises(DatasetError, match=r"cannot read the folder .*: Permission denied"):
                open_dataset("folder", root, "train")
