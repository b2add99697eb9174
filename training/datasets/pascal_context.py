"""PASCAL-Context, 59 classes and background, on the images of VOC2010.

`trainval/<id>.mat` (LabelMap, [H,W], numbers of labels.txt), `labels.txt` ("12: name") and
`59_labels.txt` beside `VOCdevkit/VOC2010`, whose ImageSets/Main has the splits. Which of the
numbers is which of the 59 classes follows from the names; all others, 0 included, are background.
Source: shelhamer/fcn.berkeleyvision.org, pascalcontext_layers.py.
"""

from __future__ import annotations

from pathlib import Path

from training.datasets.base import DatasetError, DatasetInfo
from training.datasets.format import Format, LabelReader, Pair, first_folder, read_ids
from training.datasets.labels import LabelTable, MatLabels
from training.datasets.voc import voc_folder

_CALLED_IN_FULL_LIST = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
"""The two lists disagree on three names. Source: as above."""

_CLASSES = 59


def _labels_folder(root: Path) -> Path:
    return root if (root / "labels.txt").is_file() else first_folder(root, "pascal-context")


def _names(path: Path) -> dict[int, str]:
    """Read names by number, without spaces. Raises: DatasetError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DatasetError(f"cannot read the names {path}: {reason}") from error
    names: dict[int, str] = {}
    for line in filter(str.strip, lines):
        number, colon, name = line.partition(":")
        if not (colon and number.strip().isdecimal() and name.strip()):
            raise DatasetError(f"{path}: {line!r} is not 'number: name'")
        names[int(number)] = name.replace(" ", "").strip()
    return names


def _table(folder: Path) -> LabelTable:
    full_path, task_path = folder / "labels.txt", folder / "59_labels.txt"
    full, task = _names(full_path), _names(task_path)
    task.pop(0, None)  # some copies list the background
    if sorted(task) != list(range(1, _CLASSES + 1)):
        raise DatasetError(f"{task_path} does not number 1..{_CLASSES}")
    numbers = {name: number for number, name in full.items()}
    ids = dict.fromkeys([0, *full], 0)
    for class_id, name in task.items():
        called = _CALLED_IN_FULL_LIST.get(name, name)
        if called not in numbers:
            raise DatasetError(f"{full_path} has no {called!r}, class {class_id} of {task_path}")
        ids[numbers[called]] = class_id
    return LabelTable(ids)


def _pairs(root: Path, split: str) -> list[Pair]:
    voc = voc_folder(root, 2010)
    labels = _labels_folder(root) / "trainval"
    names = read_ids(voc / "ImageSets" / "Main" / f"{split}.txt")
    return [(voc / "JPEGImages" / f"{name}.jpg", labels / f"{name}.mat") for name in names]


def _reader(root: Path, _info: DatasetInfo) -> LabelReader:
    return MatLabels(_table(_labels_folder(root)), "LabelMap")


PASCAL_CONTEXT = Format(
    layout="VOCdevkit/VOC2010; labels.txt, 59_labels.txt and trainval, also below pascal-context",
    where=(
        "http://www.cs.stanford.edu/~roozbeh/pascal-context/ and "
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/"
    ),
    # val: as the authors evaluate; train: VOC2010's other half, a number recalled, not looked up.
    splits={"train": 4998, "val": 5105},
    pairs=_pairs,
    classes="pascal_context.yaml",
    reader=_reader,
)
