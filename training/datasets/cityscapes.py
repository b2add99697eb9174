"""Cityscapes: `leftImg8bit/<split>/<city>/*_leftImg8bit.png` and the same below `gtFine`, as
`*_gtFine_labelIds.png`. The labels of its test split are withheld, so there is none here."""

from __future__ import annotations

from pathlib import Path

from training.datasets.base import VOID, DatasetError, DatasetInfo
from training.datasets.files import pair_by_name
from training.datasets.format import Format, LabelReader, Pair, first_folder
from training.datasets.labels import LabelTable, PngLabels

_SCORED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label ids of the 19 classes, in order of their train ids; the others of 0..33 are void.
Source: mcordts/cityscapesScripts, cityscapesscripts/helpers/labels.py."""
_LABEL_IDS = 34

_IMAGE = "_leftImg8bit"
_LABEL = "_gtFine_labelIds"

_TABLE = LabelTable(
    {raw: _SCORED.index(raw) if raw in _SCORED else VOID for raw in range(_LABEL_IDS)}
)


def _pairs(root: Path, split: str) -> list[Pair]:
    if split == "test":
        raise DatasetError("the labels of Cityscapes' test split are not public")
    images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    cities = first_folder(root, f"leftImg8bit/{split}", f"gtFine/{split}").iterdir()
    return [
        pair
        for city in sorted(city.name for city in cities if city.is_dir())
        for pair in pair_by_name(images / city, labels / city, {".png"}, (_IMAGE, _LABEL))
    ]


def _reader(_root: Path, _info: DatasetInfo) -> LabelReader:
    return PngLabels(_TABLE)


CITYSCAPES = Format(
    layout="leftImg8bit and gtFine, each with train and val",
    where="https://www.cityscapes-dataset.com (leftImg8bit_trainvaltest, gtFine_trainvaltest)",
    # Source: Cordts et al. 2016, section 2.1.
    splits={"train": 2975, "val": 500},
    pairs=_pairs,
    classes="cityscapes.yaml",
    reader=_reader,
)
