"""Defines what a data set gives to training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from model.contract import ClassInfo, TrainingData
from model.modality import RGB, Modality

VOID = 255
"""Label of pixels that count neither in the loss nor in a metric."""

UInt8Array = npt.NDArray[np.uint8]


_MODES_16_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})

_GREY_STEPS = {"L;2": 85, "L;4": 17}
"""Factor by which Pillow multiplies the values of 2- and 4-bit greyscale PNGs with. Tools that save
as small as they can write label maps of few classes so."""


class DatasetError(ValueError):
    """A data set is missing or not as its format says; the message names the file."""


class Sample(NamedTuple):
    """`image` RGB uint8 [H,W,3]; `target` uint8 [H,W], class ids and VOID.

    Where the data set's `modality` is not RGB, `image` is [H,W,C] as `Modality` says. Where it has
    K > 1 heads, `target` is [H,W,K], each counting its own classes from 0.
    """

    image: npt.NDArray[Any]
    target: UInt8Array


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """Class lists and origin; both end up in the contract of a network trained on it."""

    heads: dict[str, tuple[ClassInfo, ...]]
    """Class list of each labelling, by the name of the head that learns it; an only one is ""."""
    data: TrainingData
    modality: Modality = RGB
    """The images are of this kind."""

    @classmethod
    def single_head(
        cls, classes: tuple[ClassInfo, ...], data: TrainingData, modality: Modality = RGB
    ) -> DatasetInfo:
        """The ordinary case: one labelling."""
        return cls({"": classes}, data, modality)

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The class list of the first or only head."""
        return next(iter(self.heads.values()))

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Names in order of their ids, by head."""
        return {head: tuple(c.name for c in classes) for head, classes in self.heads.items()}

    @property
    def head_sizes(self) -> dict[str, int]:
        """Number of classes by head."""
        return {head: len(classes) for head, classes in self.heads.items()}


class SegmentationDataset:
    """Pairs of an image file and a label file, read on access."""

    def __init__(self, info: DatasetInfo, pairs: Sequence[tuple[Path, Path]], split: str) -> None:
        self.info = info
        self.pairs = list(pairs)
        self.split = split

    @property
    def num_classes(self) -> int:
        """Size of the class list of the first or only head."""
        return len(self.info.classes)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Read both files of a pair. Raises DatasetError if one is unreadable, the two sizes differ
        or a label is no class id."""
        image_path, label_path = self.pairs[index]
        image = self.image(index)
        target = self.target(index)
        if image.shape[:2] != target.shape[:2]:
            raise DatasetError(
                f"{image_path} is {image.shape[0]}x{image.shape[1]} but its label {label_path} "
                f"is {target.shape[0]}x{target.shape[1]}: they must be the same size"
            )
        return Sample(image, target)

    def image(self, index: int) -> npt.NDArray[Any]:
        """Read an image as `Sample` has it. Raises DatasetError."""
        return read_image(self.pairs[index][0])

    def target(self, index: int) -> UInt8Array:
        """Read a target as `Sample` has it, from the label file alone. Raises DatasetError."""
        path = self.pairs[index][1]
        target = self.read_target(path)
        check_labels(target, self.num_classes, path)
        return target

    def read_target(self, path: Path) -> UInt8Array:
        """Read one label file as this data set stores it, uint8 [H,W]. Raises DatasetError."""
        return read_label_png(path)

    def class_frequencies(self, *, progress: bool = False) -> npt.NDArray[np.float64]:
        """Count each class's share of the non-void pixels of this split, float64 [C].

        Raises: DatasetError, also if there are several labellings.
        """
        if len(self.info.heads) > 1:
            raise DatasetError("class shares are of one labelling, and this data set has several")
        counts = np.zeros(256, np.int64)
        for index in tqdm(range(len(self)), "class shares", unit="label", disable=not progress):
            counts += np.bincount(self.target(index).ravel(), minlength=256)
        labelled = counts[: self.num_classes]
        if not labelled.sum():
            raise DatasetError(f"split {self.split!r} has no labelled pixel")
        shares: npt.NDArray[np.float64] = labelled / labelled.sum()
        return shares


def check_labels(target: UInt8Array, num_classes: int, path: Path) -> None:
    """Refuse a label that is no class id. Raises: DatasetError."""
    wrong = (target >= num_classes) & (target != VOID)
    if wrong.any():
        value = int(target[wrong][0])
        raise DatasetError(
            f"{path} holds the label {value}: want 0..{num_classes - 1}, or {VOID} for void"
        )


def read_label_png(path: Path) -> UInt8Array:
    """Read a greyscale or palette PNG of up to 8 bits, uint8 [H,W]. Raises DatasetError."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("1", "L", "P"):
                raise DatasetError(
                    f"{path} is a {image.mode} image: labels must be 8-bit greyscale or "
                    "palette, one class id per pixel"
                )
            step = _GREY_STEPS.get(str(image.tile[0].args), 1)
            return np.array(image, dtype=np.uint8) // np.uint8(step)
    except (OSError, SyntaxError) as error:  # Pillow's words for a damaged file
        raise DatasetError(f"cannot read the label {path}: {error}") from error


def read_image(path: Path) -> UInt8Array:
    """Decode RGB uint8 [H,W,3], upright, as the server decodes an upload: EXIF orientation applied,
    an alpha channel dropped, the high 8 of 16 bits kept.

    Raises: DatasetError.
    """
    try:
        with Image.open(path) as image:
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                return np.array(ImageOps.exif_transpose(image).convert("RGB"))
            if image.mode in _MODES_16_BIT:
                grey = (np.asarray(image).astype(np.uint32) + 128) // 257
                return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:  # Pillow's words for a damaged file
        raise DatasetError(f"cannot read the image {path}: {error}") from error
