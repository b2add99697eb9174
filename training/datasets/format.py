"""Describes how a data set lies on disk: where its splits, images and labels are, and how a label
is read."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from training.datasets.files import Pair as Pair
from training.datasets.files import locate

LabelReader = Callable[[Path], UInt8Array]
"""Label file to uint8 [H,W], class ids and VOID. Raises DatasetError."""

Opener = Callable[[Path, str, DatasetInfo, list[Pair]], SegmentationDataset]
"""(root, split, info, pairs) to the data set. Raises DatasetError."""


_VOC_FLAG = re.compile(r" (-1| [01])$")
"""How lines of VOC's lists of one class end: `%s %2d`, with -1, 0 or 1."""


def _png_labels(_root: Path, info: DatasetInfo) -> LabelReader:
    return partial(read_label_png, classes=info.classes)


@dataclass(frozen=True, slots=True)
class Format:
    """Describes one data set's format. `root` is always the folder that the user named."""

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
    reader: Callable[[Path, DatasetInfo], LabelReader] = _png_labels
    """Makes the reader of its labels for (root, info); what it needs of root is read once, here."""
    modality: Modality = RGB
    open: Opener | None = None
    """Opens data sets whose images or labels no one file of a pair holds."""


class FormatDataset(SegmentationDataset):
    """Reads a data set whose labels the format's reader reads."""

    def __init__(
        self, info: DatasetInfo, pairs: Sequence[Pair], split: str, reader: LabelReader
    ) -> None:
        super().__init__(info, pairs, split)
        self._reader = reader

    def read_target(self, path: Path) -> UInt8Array:
        return self._reader(path)


def open_split(
    name: str, form: Format, root: Path, split: str, info: DatasetInfo, *, labels_only: bool = False
) -> SegmentationDataset:
    """Open one split. `labels_only`: for who reads no image, of which then none need be there.

    `split` may join several, as `train+val`.
    Raises: DatasetError if any of its files is missing, with where to get it.
    """
    try:
        parts = split.split("+")
        if len(parts) > 1 and form.open is not None:
            raise DatasetError(f"split {split!r}: the splits of {name} cannot be joined")
        pairs, missing = locate([pair for part in parts for pair in form.pairs(root, part)])
        if not pairs:
            raise DatasetError(f"split {split!r} of {root} is empty")
        images = {image for image, _label in pairs}
        if labels_only:
            missing = [path for path in missing if path not in images]
        if missing:
            raise DatasetError(_missing(split, pairs, missing, images), "missing")
        return open_pairs(form, root, split, info, pairs)
    except DatasetError as error:
        raise DatasetError(
            f"{error}. Of {name}, {root} must hold {form.layout}; splits: "
            f"{', '.join(form.splits)}; from {form.where}",
            error.kind,
        ) from error


def open_pairs(
    form: Format, root: Path, split: str, info: DatasetInfo, pairs: list[Pair]
) -> SegmentationDataset:
    """Open those samples of a split whose files were found. Raises: DatasetError."""
    if form.open is not None:
        return form.open(root, split, info, pairs)
    reader = ColorLabels(info.classes) if form.colors else form.reader(root, info)
    return FormatDataset(info, pairs, split, reader)


def _missing(split: str, pairs: Sequence[Pair], missing: list[Path], images: set[Path]) -> str:
    if images <= set(missing):
        return f"{pairs[0][0].parent} holds no image of split {split!r}, {missing[0]} for one"
    count = f"{len(missing)} of {2 * len(pairs)} files of split {split!r} are missing"
    wanted = next((image for image, label in pairs if label == missing[0]), None)
    if wanted is None:
        return f"{count}, the first is {missing[0]}"
    return f"{count}: {wanted} has no label: {missing[0]} is missing"


def first_folder(root: Path, *places: str) -> Path:
    """Find the first of root/place that is a folder. Raises: DatasetError naming all places
    tried."""
    for place in places:
        if (root / place).is_dir():
            return root / place
    tried = " nor ".join(str(root / place) for place in places)
    raise DatasetError(f"{'neither ' if len(places) > 1 else 'no folder '}{tried} is there")


def read_ids(path: Path) -> list[str]:
    """Read image names from a list file, one a line, without VOC's flags and blanks around.

    Raises: DatasetError if it is missing, not text, or names an image twice, which would be
    learned from and scored twice.
    """
    try:
        text = _text(path.read_bytes())
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DatasetError(f"cannot read the list {path}: {reason}") from error
    # Not splitlines(), which would part names at characters that no list means as a line's end.
    lines = (_VOC_FLAG.sub("", line.rstrip()).strip() for line in re.split("[\r\n]+", text))
    names = [name for name in lines if name]
    seen: set[str] = set()
    for name in names:
        composed = unicodedata.normalize("NFC", name)
        if composed in seen:
            raise DatasetError(f"{path} names {name} twice")
        seen.add(composed)
    return names


def _text(body: bytes) -> str:
    """Decode UTF-8, or UTF-16 that says so, as PowerShell's `>` writes it. Raises: UnicodeError."""
    utf16 = body.startswith((b"\xff\xfe", b"\xfe\xff"))
    return body.decode("utf-16" if utf16 else "utf-8-sig")
