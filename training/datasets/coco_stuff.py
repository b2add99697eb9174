"""COCO-Stuff on COCO 2017: `images/<part>2017/*.jpg` and the pixel maps of
stuffthingmaps_trainval2017 as `annotations/<part>2017/*.png`, with 0..181 and 255 for void. Eleven
of the 182 are things that COCO never segmented; the other 171 are the classes, in their order.
Source: github.com/nightrome/cocostuff, README and labels.txt.
"""

from __future__ import annotations

from pathlib import Path

from training.datasets.base import VOID, DatasetInfo
from training.datasets.files import pair_by_name
from training.datasets.format import Format, LabelReader, Pair, first_folder
from training.datasets.labels import LabelTable, PngLabels

_NEVER_USED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender, hair brush:
numbers of labels.txt, less 1. Source: README, section "Labels"."""

_USED = [raw for raw in range(182) if raw not in _NEVER_USED]
_TABLE = LabelTable({VOID: VOID, **{raw: index for index, raw in enumerate(_USED)}})


def _pairs(root: Path, split: str) -> list[Pair]:
    part = f"{split}2017"
    labels = first_folder(
        root, f"annotations/{part}", f"stuffthingmaps_trainval2017/{part}", f"stuffthingmaps/{part}"
    )
    images = root / part if (root / part).is_dir() else root / "images" / part
    return pair_by_name(images, labels, {".jpg"})


def _reader(_root: Path, _info: DatasetInfo) -> LabelReader:
    return PngLabels(_TABLE)


COCO_STUFF = Format(
    layout="images and annotations, each with train2017 and val2017",
    where=(
        "https://github.com/nightrome/cocostuff (train2017.zip, val2017.zip, "
        "stuffthingmaps_trainval2017.zip)"
    ),
    # The README says 118K and 5K; the exact numbers are recalled.
    splits={"train": 118287, "val": 5000},
    pairs=_pairs,
    classes="coco_stuff.yaml",
    reader=_reader,
)
