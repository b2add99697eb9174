"""ADE20K as in the scene parsing challenge: `ADEChallengeData2016/images/<part>/*.jpg` and
`annotations/<part>/*.png`, whose 0 is void and whose 1..150 are the classes."""

from __future__ import annotations

from pathlib import Path

from training.datasets.base import VOID, DatasetInfo
from training.datasets.files import pair_by_name
from training.datasets.format import Format, LabelReader, Pair, first_folder
from training.datasets.labels import LabelTable, PngLabels

_PARTS = {"train": "training", "val": "validation"}
_CLASSES = 150

_TABLE = LabelTable({0: VOID, **{raw: raw - 1 for raw in range(1, _CLASSES + 1)}})


def _pairs(root: Path, split: str) -> list[Pair]:
    part = _PARTS.get(split, split)
    labels = first_folder(root, f"ADEChallengeData2016/annotations/{part}", f"annotations/{part}")
    return pair_by_name(labels.parents[1] / "images" / part, labels, {".jpg"})


def _reader(_root: Path, _info: DatasetInfo) -> LabelReader:
    return PngLabels(_TABLE)


ADE20K = Format(
    layout="ADEChallengeData2016 with images and annotations",
    where="http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)",
    # Source: github.com/CSAILVision/sceneparsing, README.
    splits={"train": 20210, "val": 2000},
    pairs=_pairs,
    classes="ade20k.yaml",
    reader=_reader,
)
