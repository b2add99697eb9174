"""PASCAL VOC 2011 and 2012, SBD, and the splits the paper makes of them.

VOC: `VOCdevkit/VOC<year>/` with `JPEGImages/<id>.jpg`, `SegmentationClass/<id>.png` (palette, 255
is void) and `ImageSets/Segmentation/<split>.txt`. VOC2011's archive unpacks below `TrainVal/`.
SBD: `benchmark_RELEASE/dataset/` with `img/<id>.jpg`, `cls/<id>.mat` (struct GTcls, field
Segmentation; no void) and `train.txt`, `val.txt`.

SBD annotates images of VOC2011, and its train overlaps VOC's val. The paper therefore trains on SBD
train and validates on seg11valid: VOC2011 val without SBD train.
Source: shelhamer/fcn.berkeleyvision.org, data/pascal/README.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from model.contract import ClassInfo
from training.datasets.base import VOID, DatasetError, DatasetInfo, UInt8Array, read_label_png
from training.datasets.folder import load_info
from training.datasets.format import Format, LabelReader, Pair, first_folder, read_ids
from training.datasets.labels import LabelTable, MatLabels

SEG11VALID = "seg11valid"
TRAINAUG = "trainaug"

_SEG11VALID_IMAGES = 736
"""Source: data/pascal/seg11valid.txt of shelhamer/fcn.berkeleyvision.org."""
_SBD_TRAIN_IMAGES = 8498
"""Source: Long et al. 2015, section 4.2 ("8,498 PASCAL training images")."""
_VOC2011_VAL_IMAGES = 1111
"""Recalled from the VOC2011 development kit, as are the sizes of the other VOC splits below."""

_VOC_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc{}/ (trainval archive)"
_SBD_PAGE = "http://www.cs.berkeley.edu/~bharath2/codes/SBD/download.html"


def voc_folder(root: Path, year: int) -> Path:
    """Find the folder of one year. Raises: DatasetError."""
    name = f"VOC{year}"
    places = [f"VOCdevkit/{name}", f"TrainVal/VOCdevkit/{name}", name]
    return root if root.name == name else first_folder(root, *places)


def sbd_folder(root: Path) -> Path:
    """Find the folder with img, cls and the lists. Raises: DatasetError."""
    if (root / "cls").is_dir():
        return root
    return first_folder(root, "benchmark_RELEASE/dataset", "dataset")


def _voc_pair(folder: Path, name: str) -> Pair:
    return folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png"


def _sbd_pair(folder: Path, name: str) -> Pair:
    return folder / "img" / f"{name}.jpg", folder / "cls" / f"{name}.mat"


def _voc_ids(folder: Path, split: str) -> list[str]:
    return read_ids(folder / "ImageSets" / "Segmentation" / f"{split}.txt")


def seg11valid_ids(voc2011: Path, sbd: Path) -> list[str]:
    """List VOC2011 val without SBD train, in VOC's order.

    Raises: DatasetError if a list is missing, or both have their full length and yet the rest is
    not the paper's 736 images. Shorter lists are taken as they are: somebody's excerpt.
    """
    val, train = _voc_ids(voc2011, "val"), read_ids(sbd / "train.txt")
    learned = set(train)
    kept = [name for name in val if name not in learned]
    complete = len(val) == _VOC2011_VAL_IMAGES and len(learned) == _SBD_TRAIN_IMAGES
    if complete and len(kept) != _SEG11VALID_IMAGES:
        raise DatasetError(
            f"VOC2011 val without SBD train has {len(kept)} images, not {_SEG11VALID_IMAGES}: "
            f"{sbd / 'train.txt'} or VOC2011's val.txt is not the original"
        )
    return kept


def _voc2011_pairs(root: Path, split: str) -> list[Pair]:
    folder = voc_folder(root, 2011)
    if split == SEG11VALID:
        return [_voc_pair(folder, name) for name in seg11valid_ids(folder, sbd_folder(root))]
    return [_voc_pair(folder, name) for name in _voc_ids(folder, split)]


def _voc2012_pairs(root: Path, split: str) -> list[Pair]:
    folder = voc_folder(root, 2012)
    return [_voc_pair(folder, name) for name in _voc_ids(folder, split)]


def _sbd_pairs(root: Path, split: str) -> list[Pair]:
    sbd = sbd_folder(root)
    if split == SEG11VALID:
        return _voc2011_pairs(root, split)
    if split == TRAINAUG:
        return _trainaug_pairs(voc_folder(root, 2012), sbd)
    return [_sbd_pair(sbd, name) for name in read_ids(sbd / f"{split}.txt")]


def _trainaug_pairs(voc2012: Path, sbd: Path) -> list[Pair]:
    """List all that VOC2012 val allows: VOC2012 train with its own labels, then the images that
    only SBD has labelled, without VOC2012 val."""
    train, val = _voc_ids(voc2012, "train"), _voc_ids(voc2012, "val")
    taken = {*train, *val}
    extra = dict.fromkeys([*read_ids(sbd / "train.txt"), *read_ids(sbd / "val.txt")])
    return [
        *(_voc_pair(voc2012, name) for name in train),
        *(_sbd_pair(sbd, name) for name in extra if name not in taken),
    ]


_SBD_LABELS = MatLabels(
    LabelTable({**{n: n for n in range(21)}, VOID: VOID}), "GTcls", "Segmentation"
)


def _sbd_reader(_root: Path, info: DatasetInfo) -> LabelReader:
    return partial(_read_either, classes=info.classes)


def _read_either(path: Path, classes: Sequence[ClassInfo]) -> UInt8Array:
    """Read SBD's matrices and VOC's images: some splits mix them."""
    if path.suffix.lower() == ".mat":
        return _SBD_LABELS(path)
    return read_label_png(path, classes)


def _animals_reader(_root: Path, info: DatasetInfo) -> LabelReader:
    """Read VOC's own numbers, then take those whose names are in the class list."""
    own = load_info(Path(__file__).with_name("voc2012.yaml")).classes
    ids = np.full(256, VOID, np.uint8)
    for each in info.classes:
        ids[next(one.id for one in own if one.name == each.name)] = each.id
    return partial(_read_animals, classes=own, ids=ids)


def _read_animals(path: Path, classes: Sequence[ClassInfo], ids: UInt8Array) -> UInt8Array:
    chosen: UInt8Array = ids[read_label_png(path, classes)]
    return chosen


VOC2011 = Format(
    layout="VOCdevkit/VOC2011 and, for seg11valid, SBD's benchmark_RELEASE/dataset",
    where=_VOC_PAGE.format(2011),
    splits={
        "train": 1112,
        "val": _VOC2011_VAL_IMAGES,
        "trainval": 2223,
        SEG11VALID: _SEG11VALID_IMAGES,
    },
    pairs=_voc2011_pairs,
    classes="voc2011.yaml",
)

VOC2012 = Format(
    layout="VOCdevkit/VOC2012",
    where=_VOC_PAGE.format(2012),
    splits={"train": 1464, "val": 1449, "trainval": 2913},
    pairs=_voc2012_pairs,
    classes="voc2012.yaml",
)

VOC_ANIMALS = replace(
    VOC2012,
    where=f"photos of {_VOC_PAGE.format(2012)}, any part of them",
    splits={"train": 2179, "val": 250},
    classes="voc_animals.yaml",
    reader=_animals_reader,
)
"""Those of VOC's classes that people photograph most; the rest is void."""

SBD = Format(
    layout=(
        "benchmark_RELEASE/dataset; for seg11valid also VOCdevkit/VOC2011, for trainaug also "
        "VOCdevkit/VOC2012"
    ),
    where=f"{_SBD_PAGE}; VOC from {_VOC_PAGE.format('<year>')}",
    # val: the 11,355 images of the download page without train.
    # trainaug: github.com/zhanghang1989/PyTorch-Encoding/issues/220
    splits={
        "train": _SBD_TRAIN_IMAGES,
        "val": 2857,
        SEG11VALID: _SEG11VALID_IMAGES,
        TRAINAUG: 10582,
    },
    pairs=_sbd_pairs,
    classes="sbd.yaml",
    reader=_sbd_reader,
)
