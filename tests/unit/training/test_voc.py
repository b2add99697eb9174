"""PASCAL VOC, SBD, and the splits made of both."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tests.unit.training import miniatures
from tests.unit.training.recipes import raw_recipe
from training.config import parse_config
from training.datasets import DatasetError, SegmentationDataset, open_dataset, voc
from training.datasets.base import VOID
from training.train import train


def names(data: SegmentationDataset) -> list[str]:
    return [image.stem for image, _label in data.pairs]


@pytest.mark.parametrize("year", [2011, 2012])
def test_voc(tmp_path: Path, year: int) -> None:
    written = miniatures.voc(tmp_path, year, {"train": ["a", "b"], "val": ["c"]})
    data = open_dataset(f"voc{year}", tmp_path, "train")
    assert names(data) == ["a", "b"]
    assert data.num_classes == 21
    for index, name in enumerate(names(data)):
        image, target = data[index]
        assert image.shape == (miniatures.HEIGHT, miniatures.WIDTH, 3)
        assert (target == written[name]).all()
        assert (target[2] == VOID).all()
    assert names(open_dataset(f"voc{year}", tmp_path, "val")) == ["c"]


def test_animals_keep_their_classes_and_the_rest_is_void(tmp_path: Path) -> None:
    written = miniatures.voc(tmp_path, 2012, {"train": ["a"]})["a"]
    data = open_dataset("voc_animals", tmp_path, "train")
    kept = {0: 0, 8: 1, 10: 2, 12: 3, 13: 4, 15: 5, 17: 6}
    assert kept.keys() & set(written.ravel().tolist()) and 1 in written
    wanted = [[kept.get(number, VOID) for number in row] for row in written.tolist()]
    assert data[0].target.tolist() == wanted
    assert [entry.name for entry in data.info.classes][1::4] == ["cat", "person"]


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2011"])
def test_voc_is_found_from_each_of_its_folders(tmp_path: Path, place: str) -> None:
    miniatures.voc(tmp_path, 2011, {"val": ["a"]})
    assert len(open_dataset("voc2011", tmp_path / place, "val")) == 1


def test_voc2011_as_its_archive_unpacks(tmp_path: Path) -> None:
    miniatures.voc(tmp_path / "TrainVal", 2011, {"val": ["a"]})
    assert len(open_dataset("voc2011", tmp_path, "val")) == 1


def test_sbd(tmp_path: Path) -> None:
    written = miniatures.sbd(tmp_path, {"train": ["a", "b"], "val": ["c"]})
    for place in ("", "benchmark_RELEASE", "benchmark_RELEASE/dataset"):
        data = open_dataset("sbd", tmp_path / place, "train")
        assert names(data) == ["a", "b"]
        assert all((data[i].target == written[name]).all() for i, name in enumerate("ab"))


def test_sbd_has_the_classes_of_voc(tmp_path: Path) -> None:
    miniatures.sbd(tmp_path, {"train": ["a"]})
    miniatures.voc(tmp_path, 2012, {"train": ["a"]})
    sbd, voc2012 = (open_dataset(name, tmp_path, "train").info for name in ("sbd", "voc2012"))
    assert sbd.classes == voc2012.classes


@pytest.mark.parametrize("dataset", ["sbd", "voc2011"])
def test_seg11valid_is_voc_val_without_sbd_train(tmp_path: Path, dataset: str) -> None:
    """Labels are VOC's, with void, also in the data set that trains on SBD."""
    written = miniatures.voc(tmp_path, 2011, {"val": ["c", "a", "b"]})
    miniatures.sbd(tmp_path, {"train": ["a", "x"], "val": ["b"]})
    data = open_dataset(dataset, tmp_path, "seg11valid")
    assert names(data) == ["c", "b"]
    assert (data[1].target == written["b"]).all()


@pytest.mark.parametrize("overlap", [375, 374])
def test_seg11valid_of_the_complete_lists_has_736_images(tmp_path: Path, overlap: int) -> None:
    """1111 - 375 = 736. Lists of full length with another rest are not the originals."""
    val = [f"v{n}" for n in range(1111)]
    train = val[:overlap] + [f"t{n}" for n in range(8498 - overlap)]
    miniatures.save_list(tmp_path / "voc/ImageSets/Segmentation/val.txt", val)
    miniatures.save_list(tmp_path / "sbd/train.txt", train)
    if overlap == 375:
        assert voc.seg11valid_ids(tmp_path / "voc", tmp_path / "sbd") == val[375:]
    else:
        with pytest.raises(DatasetError, match="has 737 images, not 736: .* not the original"):
            voc.seg11valid_ids(tmp_path / "voc", tmp_path / "sbd")


def test_seg11valid_needs_sbd(tmp_path: Path) -> None:
    miniatures.voc(tmp_path, 2011, {"val": ["a"]})
    with pytest.raises(DatasetError, match=r"benchmark_RELEASE/dataset nor .* is there"):
        open_dataset("voc2011", tmp_path, "seg11valid")


def test_trainaug_leaves_voc2012_val_out_and_prefers_voc_labels(tmp_path: Path) -> None:
    voc_labels = miniatures.voc(tmp_path, 2012, {"train": ["a", "b"], "val": ["c", "d"]})
    sbd_labels = miniatures.sbd(tmp_path, {"train": ["a", "c", "x"], "val": ["d", "y", "b"]})
    data = open_dataset("sbd", tmp_path, "trainaug")
    assert names(data) == ["a", "b", "x", "y"]
    for index, (name, source) in enumerate(
        zip("abxy", [voc_labels, voc_labels, sbd_labels, sbd_labels], strict=True)
    ):
        assert (data[index].target == source[name]).all()


def test_what_follows_a_name_in_a_list_is_passed_over(tmp_path: Path) -> None:
    miniatures.voc(tmp_path, 2012, {"train": ["a"]})
    listed = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"
    listed.write_text("a  1\r\n\r\n")
    assert names(open_dataset("voc2012", tmp_path, "train")) == ["a"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a\nb\na\n", r"train\.txt names a twice"),
        (b"", "split 'train' of .* is empty"),
        (b"\xff\xfea", r"cannot read the list .*train\.txt: not UTF-8 text"),
        (b"a\nz\n", r"2 of 4 files of split 'train' are missing, the first is .*z\.jpg"),
    ],
)
def test_wrong_lists(tmp_path: Path, content: bytes, complaint: str) -> None:
    miniatures.voc(tmp_path, 2012, {"train": ["a", "b"]})
    (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").write_bytes(content)
    with pytest.raises(DatasetError, match=complaint):
        open_dataset("voc2012", tmp_path, "train")


def test_unknown_split_names_those_there_are_and_the_source(tmp_path: Path) -> None:
    miniatures.voc(tmp_path, 2012, {"train": ["a"]})
    with pytest.raises(DatasetError, match=r"test\.txt: No such file.*train, val, trainval; from"):
        open_dataset("voc2012", tmp_path, "test")


def test_label_beyond_the_classes(tmp_path: Path) -> None:
    miniatures.voc(tmp_path, 2012, {"train": ["a"]})
    path = tmp_path / "VOCdevkit/VOC2012/SegmentationClass/a.png"
    miniatures.save_palette_png(path, miniatures.labels_of("a", 22))
    with pytest.raises(DatasetError, match=r"a\.png holds the label 21"):
        open_dataset("voc2012", tmp_path, "train")[0]


def test_other_processes_can_read_it(tmp_path: Path) -> None:
    """Reader processes get a pickled copy where they are not forked."""
    written = miniatures.sbd(tmp_path, {"train": ["a"]})
    copy = pickle.loads(pickle.dumps(open_dataset("sbd", tmp_path, "train")))
    assert (copy[0].target == written["a"]).all()


def test_the_set_up_of_the_paper_trains(tmp_path: Path) -> None:
    miniatures.sbd(tmp_path, {"train": ["a", "b"], "val": []})
    miniatures.voc(tmp_path, 2011, {"val": ["a", "c"]})
    raw = raw_recipe(tmp_path)
    raw["data"] |= {"dataset": "sbd", "val_split": "seg11valid", "allow_absent": True}
    raw["schedule"]["epochs"] = 1
    checkpoint = train(parse_config(raw, "test"), tmp_path / "run", run_log=None)
    assert checkpoint.iteration == 1
