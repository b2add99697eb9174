"""Describes how a data set lies on disk: where its splits, images and labels are, and how a label
is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.modality import RGB, Modality
from training.datasets.base import (
    DatasetError,
    DatasetInfo,
    SegmentationDataset,
    UInt8Array,
    read_label_png,
)
from training.datasets.colors import ColorLabels

Pair = tuple[Path, Path]
"""Image file and label file of one sample; neither need exist."""

LabelReader = Callable[[Path], UInt8Array]
"""Label file to uint8 [H,W], class ids and VOID. Raises DatasetError."""

Opener = Callable[[Path, str, DatasetInfo, list[Pair]], SegmentationDataset]
"""(root, split, info, pairs) to the data set. Raises DatasetError."""


def _png_labels(_root: Path) -> LabelReader:
    return read_label_png


@dataclass(frozen=True, slots=True)
class Format:
    """One data set's format. `root` is always the folder that the user named."""

    layout: str
    """Says what root must hold, as a user would."""
    where: str
    """Where the files come from: nothing is ever downloaded."""
    splits: Mapping[str, int | None]
    """Images of each split in the complete data set; None: any number."""
    pairs: Callable[[Path, str], list[Pair]]
    """Lists samples in order for (root, split). Raises DatasetError if a list or folder is
    missing."""
    classes: str | Mapping[str, str] | None
    """Class list beside this module, or one by head; None: `classes.yaml` of root."""
    colors: bool = False
    """True if a label may also be an RGB image in the class list's colours."""
    reader: Callable[[Path], LabelReader] = _png_labels
    """Makes the reader of its labels for (root); what it needs of root is read once, here."""
    modality: Modality = RGB
    open: Opener | None = None
    """Opens data sets whose images or labels no one file of a pair holds."""


class FormatDataset(SegmentationDataset):
    """A data set whose labels the format's reader reads."""

    def __init__(
        self, info: DatasetInfo, pairs: Sequence[Pair], split: str, reader: LabelReader
    ) -> None:
        super().__init__(info, pairs, split)
        self._reader = reader

    def read_target(self, path: Path) -> UInt8Array:
        return self._reader(path)


def open_split(
    name: str, form: Format, root: Path, split: str, info: DatasetInfo
) -> SegmentationDataset:
    """Open one split. Raises: DatasetError if any of its files is missing, with where to get it."""
    try:
        pairs = form.pairs(root, split)
        if not pairs:
            raise DatasetError(f"split {split!r} of {root} is empty")
        missing = missing_files(pairs)
        if missing:
            raise DatasetError(
                f"{len(missing)} of {2 * len(pairs)} files of split {split!r} are missing, "
                f"the first is {missing[0]}"
            )
        if form.open is not None:
            return form.open(root, split, info, pairs)
        reader = form.reader(root)
    except DatasetError as error:
        raise DatasetError(
            f"{error}. Of {name}, {root} must hold {form.layout}; splits: "
            f"{', '.join(form.splits)}; from {form.where}"
        ) from error
    if form.colors:
        reader = ColorLabels(info.classes, otherwise=reader)
    return FormatDataset(info, pairs, split, reader)


def missing_files(pairs: Sequence[Pair]) -> list[Path]:
    """List the files that are named but not there, in order."""
    return [path for pair in pairs for path in pair if not path.is_file()]


def first_folder(root: Path, *places: str) -> Path:
    """Find the first of root/place that is a folder. Raises: DatasetError naming all places
    tried."""
    for place in places:
        if (root / place).is_dir():
            return root / place
    tried = " nor ".join(str(root / place) for place in places)
    raise DatasetError(f"{'neither ' if len(places) > 1 else 'no folder '}{tried} is there")


def read_ids(path: Path) -> list[str]:
    """Read image names from a list file, one a line; what follows a space (VOC's flags) is passed
    over.

    Raises: DatasetError if it is missing, not text, or names an image twice, which would be
    learned from and scored twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DatasetError(f"cannot read the list {path}: {reason}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DatasetError(f"{path} names {name} twice")
        seen.add(name)
    return names
