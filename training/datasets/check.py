"""Finds out what of a data set is on disk, and whether it can be used (`fcn data check`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from training.datasets import (
    DatasetError,
    DatasetInfo,
    Format,
    SegmentationDataset,
    class_info,
    find_format,
)
from training.datasets.coverage import Coverage
from training.datasets.files import locate
from training.datasets.format import open_pairs

T = TypeVar("T")

_SHOWN = 5

_KINDS = {
    "layout": "not as the format says",
    "missing": "files are missing",
    "image": "images cannot be read",
    "depth": "depth images cannot be read",
    "label": "labels cannot be read",
    "class": "labels hold what is no class id",
    "size": "images and labels differ in size",
    "empty": "no pixel is labelled",
}


@dataclass(slots=True)
class SplitReport:
    """Says what was found of one split."""

    name: str
    expected: int | None
    """Number of images in the complete data set; None: any number."""
    images: int = 0
    """Listed or found, whether or not all of their files are there."""
    missing_files: int = 0
    read: int = 0
    """Samples that were read in full: one, or all of them on request."""
    problems: dict[str, list[str]] = field(default_factory=dict)
    """Why it cannot be used: every problem in words, by kind."""
    warnings: list[str] = field(default_factory=list)
    coverage: Coverage | None = None
    """The pixels of each class, if every label was read."""

    @property
    def usable(self) -> bool:
        return not self.problems

    @property
    def problem(self) -> str:
        """Give the first problem; empty if there is none."""
        if not self.problems:
            return ""
        kind, found = next(iter(self.problems.items()))
        if kind == "missing":
            return f"{len(found)} files are missing, the first is {found[0]}"
        return found[0]

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Do `work`; a DatasetError becomes a problem of this split, and None the result."""
        try:
            return work()
        except DatasetError as error:
            self.problems.setdefault(error.kind, []).append(str(error))
            return None

    def to_dict(self) -> dict[str, Any]:
        counted = self.coverage
        return {
            "name": self.name,
            "images": self.images,
            "expected": self.expected,
            "missing_files": self.missing_files,
            "read": self.read,
            "problem": self.problem,
            "problems": [
                {"kind": kind, "count": len(found), "first": found[:_SHOWN]}
                for kind, found in self.problems.items()
            ],
            "warnings": self.warnings,
            "class_shares": counted.shares if counted else None,
            "void_share": counted.void if counted else None,
            "usable": self.usable,
        }

    def lines(self) -> list[str]:
        """Format the state, each kind of problem with the first few, and the warnings."""
        counted = f"{self.images} images"
        if self.expected not in (None, self.images):
            counted += f" of {self.expected}"
        state = f"usable, {self.read} read" if self.usable else "not usable"
        lines = [f"{state}; {counted}"]
        for kind, found in self.problems.items():
            if kind != "layout":
                lines.append(f"{len(found)}: {_KINDS.get(kind, kind)}")
            lines += ["  " + text.replace("\n", "\\n") for text in found[:_SHOWN]]
            if len(found) > _SHOWN:
                lines.append(f"  and {len(found) - _SHOWN} more")
        return lines + [f"warning: {text}" for text in self.warnings]


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
        """Format the splits with their problems, the classes' shares, then origin and verdict."""
        width = max(len(split.name) for split in self.splits)
        lines = [f"{self.info.data.name}, {len(self.info.classes)} classes, in {self.root}", ""]
        for split in self.splits:
            first, *more = split.lines()
            lines.append(f"  {split.name:<{width}}  {first}")
            lines += [f"  {'':<{width}}  {line}" for line in more]
        return "\n".join([
            *lines,
            *self._shares(),
            "",
            f"wants    {self.layout}",
            f"from     {self.where} (nothing is downloaded for you)",
            f"licence  {self.info.data.licence}",
            f"source   {self.info.data.source or 'not stated'}",
            "",
            "usable" if self.usable else "not usable",
        ])  # fmt: skip

    def _shares(self) -> list[str]:
        """Format a row a class and a column a split, of those whose labels were all read."""
        counted = [split.coverage for split in self.splits if split.coverage is not None]
        if not counted:
            return ["", "the classes' shares of the pixels: with --read-all"]
        shares = [coverage.shares for coverage in counted]
        rows = [("of labelled pixels [%]", [coverage.split for coverage in counted])]
        for name in shares[0]:
            rows.append((name, [f"{100 * of[name]:.2f}" if of[name] else "none" for of in shares]))
        rows.append(("void, of all pixels", [f"{100 * coverage.void:.2f}" for coverage in counted]))
        width = max(len(name) for name, _cells in rows)
        wide = max(len(cell) for _name, cells in rows for cell in cells)
        return [
            "",
            *(
                f"{name:<{width}}" + "".join(f"  {cell:>{wide}}" for cell in cells)
                for name, cells in rows
            ),
        ]


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
        _check_split(form, root, split, info, read_all, progress) for split in splits or form.splits
    )
    return DataReport(name, root, info, form.layout, form.where, reports, bool(splits))


def _check_split(
    form: Format, root: Path, split: str, info: DatasetInfo, read_all: bool, progress: bool
) -> SplitReport:
    """Find every problem of a split: what is missing keeps none of the rest from being read."""
    report = SplitReport(split, form.splits.get(split))
    found = report.attempt(lambda: locate(form.pairs(root, split)))
    if found is None:
        return report
    pairs, missing = found
    report.images, report.missing_files = len(pairs), len(missing)
    if not pairs:
        report.problems["layout"] = ["it is empty"]
    if missing:
        report.problems["missing"] = [str(path) for path in missing]
    gone = set(missing)
    pairs = [pair for pair in pairs if gone.isdisjoint(pair)]
    data = report.attempt(lambda: open_pairs(form, root, split, info, pairs)) if pairs else None
    if data is None:
        return report
    coverage = Coverage(data)
    for index in _indices(data, read_all, progress):
        _read(report, data, index, coverage)
    if read_all and coverage.labels:
        report.coverage = coverage
        if not coverage.labelled:
            report.problems["empty"] = [coverage.nothing]
        elif coverage.warning:
            report.warnings.append(coverage.warning)
        if coverage.labelled and coverage.empty:
            report.warnings.append(f"{coverage.empty} labels are void throughout")
    return report


def _read(report: SplitReport, data: SegmentationDataset, index: int, coverage: Coverage) -> None:
    """Read both files of a sample, and compare their sizes and the label's values."""
    image = report.attempt(lambda: data.image(index))
    target = report.attempt(lambda: data.target(index))
    if target is not None:
        coverage.add(target)
    if image is None or target is None:
        return
    before = len(report.problems.get("size", ()))
    report.attempt(lambda: data.check_sizes(index, image, target))
    report.read += len(report.problems.get("size", ())) == before


def _indices(data: SegmentationDataset, read_all: bool, progress: bool) -> Iterable[int]:
    if not read_all:
        return [0]
    return tqdm(range(len(data)), data.split, unit="image", disable=not progress)
