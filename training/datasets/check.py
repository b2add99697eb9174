"""Finds out what of a data set is on disk, and whether it can be used (`fcn data check`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from training.datasets import (
    DatasetError,
    DatasetInfo,
    Format,
    SegmentationDataset,
    class_info,
    find_format,
    open_dataset,
)
from training.datasets.format import missing_files


@dataclass(frozen=True, slots=True)
class SplitReport:
    """Says what was found of one split."""

    name: str
    images: int
    """Listed or found, whether or not all of their files are there."""
    expected: int | None
    """Number of images in the complete data set; None: any number."""
    missing_files: int
    read: int
    """Samples that were read in full: one, or all of them on request."""
    problem: str
    """Why it cannot be used; empty if it can."""

    @property
    def usable(self) -> bool:
        return not self.problem

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "usable": self.usable}


@dataclass(frozen=True, slots=True)
class DataReport:
    """Says what was found of a data set."""

    dataset: str
    root: Path
    info: DatasetInfo
    layout: str
    where: str
    splits: tuple[SplitReport, ...]
    wanted: bool
    """True if the user named the splits: then each must be usable, else any is enough."""

    @property
    def usable(self) -> bool:
        verdicts = [split.usable for split in self.splits]
        return all(verdicts) if self.wanted else any(verdicts)

    def to_dict(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "root": str(self.root),
            "name": self.info.data.name,
            "classes": len(self.info.classes),
            "licence": self.info.data.licence,
            "source": self.info.data.source,
            "layout": self.layout,
            "where": self.where,
            "splits": [split.to_dict() for split in self.splits],
            "usable": self.usable,
        }

    def table(self) -> str:
        """Format a line a split, a line a problem, then origin and verdict."""
        width = max(len(split.name) for split in self.splits)
        lines = [f"{self.info.data.name}, {len(self.info.classes)} classes, in {self.root}", ""]
        for split in self.splits:
            counted = f"{split.images} images"
            if split.expected not in (None, split.images):
                counted += f" of {split.expected}"
            state = f"usable, {split.read} read" if split.usable else "not usable"
            lines.append(f"  {split.name:<{width}}  {state}; {counted}")
            if split.problem:
                lines.append(f"  {'':<{width}}  {split.problem}")
        lines += [
            "",
            f"wants    {self.layout}",
            f"from     {self.where} (nothing is downloaded for you)",
            f"licence  {self.info.data.licence}",
            f"source   {self.info.data.source or 'not stated'}",
            "",
            "usable" if self.usable else "not usable",
        ]
        return "\n".join(lines)


def check(
    name: str,
    root: Path,
    splits: Sequence[str] = (),
    *,
    classes: Path | None = None,
    read_all: bool = False,
    progress: bool = True,
) -> DataReport:
    """Look at the splits, or at all that the format has; read one sample of each, or all.

    Raises: DatasetError for an unknown data set, a root that is no folder or a bad class list.
    """
    form = find_format(name)
    if not root.is_dir():
        raise DatasetError(f"{root} is no folder: {name} wants {form.layout}, from {form.where}")
    info = class_info(form, root, classes)
    reports = tuple(
        _check_split(name, form, root, split, classes, read_all, progress)
        for split in splits or form.splits
    )
    return DataReport(name, root, info, form.layout, form.where, reports, bool(splits))


def _check_split(
    name: str,
    form: Format,
    root: Path,
    split: str,
    classes: Path | None,
    read_all: bool,
    progress: bool,
) -> SplitReport:
    expected = form.splits.get(split)
    images = missing = read = 0
    try:
        pairs = form.pairs(root, split)
        images, absent = len(pairs), missing_files(pairs)
        missing = len(absent)
        if absent:
            raise DatasetError(f"{missing} files are missing, the first is {absent[0]}")
        if not pairs:
            raise DatasetError("it is empty")
        data = open_dataset(name, root, split, classes)
        for index in _indices(data, read_all, progress):
            data[index]  # reads both files, compares sizes and values
            read += 1
    except DatasetError as error:
        return SplitReport(split, images, expected, missing, read, str(error))
    return SplitReport(split, images, expected, missing, read, "")


def _indices(data: SegmentationDataset, read_all: bool, progress: bool) -> Iterable[int]:
    if not read_all:
        return [0]
    return tqdm(range(len(data)), data.split, unit="image", disable=not progress)
