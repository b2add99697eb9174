"""NYUDv2, colour images with 40 classes, as the authors of FCN laid it out (nyud.tar.gz).

`data/images/img_<id>.png`, `segmentation/img_<id>.mat` (segmentation, [H,W], 0 is void, 1..40 the
classes) and the lists `train.txt`, `val.txt`, `test.txt`; trainval is train and val, one after the
other. Depth and HHA, which lie beside the images, are not read: networks here take RGB.
Source: shelhamer/fcn.berkeleyvision.org, nyud_layers.py and data/nyud.
"""

from __future__ import annotations

from pathlib import Path

from training.datasets.base import VOID
from training.datasets.format import Format, LabelReader, Pair, first_folder, read_ids
from training.datasets.labels import LabelTable, MatLabels

_CLASSES = 40
_LABELS = MatLabels(
    LabelTable({0: VOID, **{raw: raw - 1 for raw in range(1, _CLASSES + 1)}}), "segmentation"
)


def _pairs(root: Path, split: str) -> list[Pair]:
    images = first_folder(root, "data/images")
    if split == "trainval" and not (root / "trainval.txt").is_file():
        names = [*read_ids(root / "train.txt"), *read_ids(root / "val.txt")]
    else:
        names = read_ids(root / f"{split}.txt")
    labels = root / "segmentation"
    return [(images / f"img_{name}.png", labels / f"img_{name}.mat") for name in names]


def _reader(_root: Path) -> LabelReader:
    return _LABELS


NYUDV2 = Format(
    layout="data/images, segmentation, train.txt, val.txt and test.txt",
    where=(
        "http://dl.caffe.berkeleyvision.org/nyud.tar.gz, and the lists from data/nyud of "
        "https://github.com/shelhamer/fcn.berkeleyvision.org"
    ),
    splits={"train": 381, "val": 414, "trainval": 795, "test": 654},
    pairs=_pairs,
    classes="nyudv2.yaml",
    reader=_reader,
)
