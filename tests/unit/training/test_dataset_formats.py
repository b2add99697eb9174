"""Cityscapes, ADE20K, COCO-Stuff, SIFT Flow, PASCAL-Context and NYUDv2, from miniature copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.unit.training import miniatures
from training.datasets import DATASETS, DatasetError, class_info, open_dataset
from training.datasets.base import VOID

CLASS_COUNTS = {
    "ade20k": 150,
    "camvid": 11,
    "cityscapes": 19,
    "coco_stuff": 171,
    "facade": 11,
    "nyudv2": 40,
    "nyudv2_hha": 40,
    "nyudv2_rgb_hha": 40,
    "nyudv2_rgbd": 40,
    "pascal_context": 60,
    "sbd": 21,
    "siftflow": 33,
    "siftflow_both": 33,
    "siftflow_geometric": 3,
    "voc2011": 21,
    "voc2012": 21,
    "voc_animals": 7,
}


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"folder"}))
def test_class_lists(name: str, tmp_path: Path) -> None:
    info = class_info(DATASETS[name], tmp_path)
    assert len(info.classes) == CLASS_COUNTS[name]
    assert len({entry.color for entry in info.classes}) == len(info.classes)
    assert info.data.licence
    assert info.data.source


def test_cityscapes(tmp_path: Path) -> None:
    """All 34 label ids, against the train ids as cityscapesScripts has them."""
    raw = np.arange(35, dtype=np.uint8).reshape(miniatures.HEIGHT, miniatures.WIDTH)
    raw[-1, -1] = 0
    for city in ("ulm", "aachen"):
        stem = f"train/{city}/{city}_000000_000019"
        miniatures.save_image(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png")
        miniatures.save_grey_png(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png", raw)
        miniatures.save_grey_png(tmp_path / f"gtFine/{stem}_gtFine_instanceIds.png", raw)
    data = open_dataset("cityscapes", tmp_path, "train")
    assert [image.parent.name for image, _ in data.pairs] == ["aachen", "ulm"]
    target = data[0].target.ravel().tolist()
    scored = {index: value for index, value in enumerate(target) if value != VOID}
    names = [data.info.classes[value].name for value in scored.values()]
    assert " ".join(f"{name}:{raw}" for name, raw in zip(names, scored, strict=True)) == (
        "road:7 sidewalk:8 building:11 wall:12 fence:13 pole:17 traffic_light:19 traffic_sign:20 "
        "vegetation:21 terrain:22 sky:23 person:24 rider:25 car:26 truck:27 bus:28 train:31 "
        "motorcycle:32 bicycle:33"
    )
    assert list(scored.values()) == list(range(19))


def test_cityscapes_label_that_it_does_not_have(tmp_path: Path) -> None:
    stem = "val/ulm/ulm_1"
    miniatures.save_image(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png")
    label = tmp_path / f"gtFine/{stem}_gtFine_labelIds.png"
    miniatures.save_grey_png(label, np.full((miniatures.HEIGHT, miniatures.WIDTH), 34))
    with pytest.raises(DatasetError, match="holds the label 34, which its format does not have"):
        open_dataset("cityscapes", tmp_path, "val")[0]


def test_cityscapes_test_labels_are_withheld(tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit/test/ulm").mkdir(parents=True)
    with pytest.raises(DatasetError, match="test split are not public"):
        open_dataset("cityscapes", tmp_path, "test")


def test_cityscapes_without_labels(tmp_path: Path) -> None:
    miniatures.save_image(tmp_path / "leftImg8bit/val/ulm/ulm_1_leftImg8bit.png")
    with pytest.raises(DatasetError, match=r"1 of 2 files .*ulm/ulm_1_gtFine_labelIds\.png"):
        open_dataset("cityscapes", tmp_path, "val")


@pytest.mark.parametrize("place", ["", "ADEChallengeData2016"])
@pytest.mark.parametrize(("split", "part"), [("train", "training"), ("val", "validation")])
def test_ade20k(tmp_path: Path, place: str, split: str, part: str) -> None:
    root = tmp_path / "ADEChallengeData2016"
    raw = miniatures.labels_of("a", 151)  # 0 is void
    raw[1, 1] = 0
    miniatures.save_image(root / f"images/{part}/ADE_1.jpg")
    miniatures.save_grey_png(root / f"annotations/{part}/ADE_1.png", raw)
    target = open_dataset("ade20k", tmp_path / place, split)[0].target
    assert target[0, 0] == 149
    assert (target == np.where(raw == 0, VOID, raw.astype(int) - 1)).all()


@pytest.mark.parametrize("place", ["annotations", "stuffthingmaps_trainval2017"])
def test_coco_stuff(tmp_path: Path, place: str) -> None:
    """Names as labels.txt has them at number + 1."""
    raw = miniatures.labels_of("a", 10)  # before the first number that is never used
    known = {0: "person", 12: "stop_sign", 89: "toothbrush", 91: "banner", 181: "wood"}
    raw[0, : len(known)] = list(known)
    raw[1, 1] = VOID
    miniatures.save_image(tmp_path / "images/val2017/000000000139.jpg")
    miniatures.save_grey_png(tmp_path / place / "val2017/000000000139.png", raw)
    data = open_dataset("coco_stuff", tmp_path, "val")
    target = data[0].target
    assert [data.info.classes[i].name for i in target[0, : len(known)]] == list(known.values())
    assert (target[1:] == raw[1:]).all()
    raw[3, 3] = 11  # street sign, never segmented
    miniatures.save_grey_png(tmp_path / place / "val2017/000000000139.png", raw)
    with pytest.raises(DatasetError, match="holds the label 11, which its format"):
        data.target(0)


def test_siftflow(tmp_path: Path) -> None:
    written = miniatures.siftflow(
        tmp_path, {"trainval": ["coast_1", "city_2"], "test": ["forest_3"]}
    )
    for index, name in enumerate(["coast_1", "city_2"]):
        for kind, dataset in enumerate(["siftflow", "siftflow_geometric"]):
            data = open_dataset(dataset, tmp_path, "trainval")
            assert (data[index].target == written[name][kind]).all()
            assert (data[index].target == VOID).sum() == 1
    assert len(open_dataset("siftflow", tmp_path, "test")) == 1


def test_siftflow_both(tmp_path: Path) -> None:
    written = miniatures.siftflow(tmp_path, {"trainval": ["coast_1", "city_2"]})
    data = open_dataset("siftflow_both", tmp_path, "trainval")
    assert [len(classes) for classes in data.info.heads.values()] == [33, 3]
    for index, name in enumerate(["coast_1", "city_2"]):
        assert (data[index].target == np.stack(written[name], axis=-1)).all()
    with pytest.raises(DatasetError, match="class shares are of one labelling"):
        data.class_frequencies()
    label = tmp_path / f"GeoLabels/{miniatures.SCENES}/city_2.mat"
    miniatures.save_mat(label, S=np.ones((2, 3)))
    with pytest.raises(DatasetError, match=r"GeoLabels/.*/city_2\.mat is 2x3: they must be the"):
        data[1]
    label.unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 geometric labels .*city_2\.mat"):
        open_dataset("siftflow_both", tmp_path, "trainval")


def test_nyudv2(tmp_path: Path) -> None:
    written = miniatures.nyudv2(tmp_path, {"train": ["5003"], "val": ["5001"], "test": ["5002"]})
    data = open_dataset("nyudv2", tmp_path, "trainval")
    assert [image.name for image, _ in data.pairs] == ["img_5003.png", "img_5001.png"]
    assert (data[0].target == written["5003"]).all()
    assert (data[1].target == written["5001"]).all()
    miniatures.save_list(tmp_path / "trainval.txt", ["5001"])
    assert len(open_dataset("nyudv2", tmp_path, "trainval")) == 1


def context(root: Path, below: str = "") -> list[str]:
    """One image of PASCAL-Context in which number n of labels.txt stands at pixel n; returns the
    59 names. The full list is in another order, and disagrees on three names as the real one."""
    names = [entry.name for entry in class_info(DATASETS["pascal_context"], root).classes][1:]
    spaced = {"pottedplant": "potted plant", "tvmonitor": "tv monitor"}
    full = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
    listed = ["accordion", *(full.get(n, spaced.get(n, n)) for n in reversed(names)), "zebra"]
    folder = root / below
    miniatures.save_list(
        folder / "labels.txt", [f"{n}: {name}" for n, name in enumerate(listed, 1)]
    )
    miniatures.save_list(
        folder / "59_labels.txt", [f"{n}: {name}" for n, name in enumerate(names, 1)]
    )
    raw = np.arange(62, dtype=np.uint16).reshape(2, 31)
    miniatures.save_mat(folder / "trainval/2008_1.mat", LabelMap=raw)
    miniatures.save_image(root / "VOCdevkit/VOC2010/JPEGImages/2008_1.jpg")
    miniatures.save_list(root / "VOCdevkit/VOC2010/ImageSets/Main/val.txt", ["2008_1"])
    return names


@pytest.mark.parametrize("below", ["", "pascal-context"])
def test_pascal_context_follows_the_names(tmp_path: Path, below: str) -> None:
    context(tmp_path, below)
    target = open_dataset("pascal_context", tmp_path, "val").target(0).ravel()
    assert target[[0, 1, 61]].tolist() == [0, 0, 0]  # none, accordion, zebra
    assert target[2:61].tolist() == list(range(59, 0, -1))


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("labels.txt", "table", "desk", r"labels\.txt has no 'table', class 11 of .*59_labels"),
        ("labels.txt", "1: accordion", "accordion", "'accordion' is not 'number: name'"),
        ("59_labels.txt", "59: ", "60: ", r"59_labels\.txt does not number 1\.\.59"),
    ],
)
def test_pascal_context_lists_that_do_not_fit(
    tmp_path: Path, file: str, old: str, new: str, complaint: str
) -> None:
    context(tmp_path)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    with pytest.raises(DatasetError, match=complaint):
        open_dataset("pascal_context", tmp_path, "val")


def test_pascal_context_lists_that_cannot_be_read(tmp_path: Path) -> None:
    context(tmp_path)
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match=r"cannot read the names .*labels\.txt: not UTF-8"):
        open_dataset("pascal_context", tmp_path, "val")
    context(tmp_path)
    (tmp_path / "59_labels.txt").unlink()
    with pytest.raises(DatasetError, match=r"cannot read the names .*59_labels\.txt: No such"):
        open_dataset("pascal_context", tmp_path, "val")


def test_pascal_context_number_that_the_list_lacks(tmp_path: Path) -> None:
    context(tmp_path)
    miniatures.save_mat(tmp_path / "trainval/2008_1.mat", LabelMap=np.full((5, 7), 62, np.uint16))
    with pytest.raises(DatasetError, match="holds the label 62"):
        open_dataset("pascal_context", tmp_path, "val")[0]


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"folder"}))
def test_an_empty_folder_is_answered_with_what_is_wanted(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"Of {name}, .* must hold .*; from "):
        open_dataset(name, tmp_path, next(iter(DATASETS[name].splits)))
