"""Any folder of images and masks, and CamVid, which is one.

Layout: `<root>/<split>/images/<stem>.<jpg|jpeg|png|bmp|webp>`, `<root>/<split>/labels/<stem>.png`.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from model.contract import ClassInfo, TrainingData
from training.datasets.base import DatasetError, DatasetInfo, SegmentationDataset

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def load_info(path: Path) -> DatasetInfo:
    """Class list and origin from YAML: `name`, `licence`, optional `source`, and `classes`, a
    list of `{name, color: [r,g,b], description?}` in order of their ids.

    Raises: DatasetError naming what is missing.
    """
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise DatasetError(f"cannot read the class list {path}: {error}") from error
    try:
        classes = tuple(
            ClassInfo(
                id=index,
                name=str(entry["name"]),
                color=_color(entry["color"]),
                description=str(entry.get("description", "")),
            )
            for index, entry in enumerate(raw["classes"])
        )
        data = TrainingData(
            name=str(raw["name"]), licence=str(raw["licence"]), source=str(raw.get("source", ""))
        )
    except KeyError as error:
        raise DatasetError(f"{path}: {error} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{path}: {error}") from error
    if not classes:
        raise DatasetError(f"{path}: the class list is empty")
    return DatasetInfo(classes, data)


def _color(raw: object) -> tuple[int, int, int]:
    if not (isinstance(raw, list) and len(raw) == 3 and all(type(c) is int for c in raw)):
        raise ValueError(f"color {raw!r}: want [red, green, blue] in 0..255")
    red, green, blue = raw
    return red, green, blue


def open_folder(root: Path, split: str, info: DatasetInfo) -> SegmentationDataset:
    """Raises: DatasetError if a folder, an image or a label is missing."""
    images, labels = root / split / "images", root / split / "labels"
    for folder in (images, labels):
        if not folder.is_dir():
            raise DatasetError(
                f"{folder} is missing: want {root}/<split>/images and {root}/<split>/labels"
            )
    pairs = []
    for image in sorted(p for p in images.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES):
        label = labels / f"{image.stem}.png"
        if not label.is_file():
            raise DatasetError(f"{image} has no label: {label} is missing")
        pairs.append((image, label))
    if not pairs:
        raise DatasetError(f"{images} holds no image ({', '.join(sorted(_IMAGE_SUFFIXES))})")
    return SegmentationDataset(info, pairs, split)
