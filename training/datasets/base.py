"""Defines what a data set gives to training and evaluation."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from model.contract import ClassInfo, TrainingData
from model.modality import RGB, Modality
from service.core.images.bare import bare
from service.core.images.decode import decode
from service.core.images.header import read_header
from training.datasets.palette import contradiction

VOID = 255
"""Label of pixels that count neither in the loss nor in a metric."""

UInt8Array = npt.NDArray[np.uint8]


_LABEL_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B"})
_LOSSY = frozenset({"JPEG", "MPO", "WEBP"})

_GREY_STEPS = {"L;2": 85, "L;4": 17}
"""Factor by which Pillow multiplies the values of 2- and 4-bit greyscale PNGs with. Tools that save
as small as they can write label maps of few classes so."""


class DatasetError(ValueError):
    """A data set is missing or not as its format says; the message names the file."""

    def __init__(self, message: str, kind: str = "layout") -> None:
        """`kind`: of problem, as `fcn data check` counts them."""
        super().__init__(message)
        self.kind = kind


class Sample(NamedTuple):
    """Holds an `image`, RGB uint8 [H,W,3], and its `target`, uint8 [H,W], class ids and VOID.

    Where the data set's `modality` is not RGB, `image` is [H,W,C] as `Modality` says. Where it has
    K > 1 heads, `target` is [H,W,K], each counting its own classes from 0.
    """

    image: npt.NDArray[Any]
    target: UInt8Array


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """Holds class lists and origin, which end up in the contract of a network trained on them."""

    heads: dict[str, tuple[ClassInfo, ...]]
    """Class list of each labelling, by the name of the head that learns it; an only one is ""."""
    data: TrainingData
    modality: Modality = RGB
    """The images are of this kind."""

    @classmethod
    def single_head(
        cls, classes: tuple[ClassInfo, ...], data: TrainingData, modality: Modality = RGB
    ) -> DatasetInfo:
        """Make the ordinary case: one labelling."""
        return cls({"": classes}, data, modality)

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Give the class list of the first or only head."""
        return next(iter(self.heads.values()))

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Names in order of their ids, by head."""
        return {head: tuple(c.name for c in classes) for head, classes in self.heads.items()}

    @property
    def head_sizes(self) -> dict[str, int]:
        """Count classes by head."""
        return {head: len(classes) for head, classes in self.heads.items()}


class SegmentationDataset:
    """Pairs of an image file and a label file, read on access."""

    def __init__(self, info: DatasetInfo, pairs: Sequence[tuple[Path, Path]], split: str) -> None:
        self.info = info
        self.pairs = list(pairs)
        self.split = split

    @property
    def num_classes(self) -> int:
        """Count the classes of the first or only head."""
        return len(self.info.classes)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Read both files of a pair. Raises DatasetError if one is unreadable, the two sizes differ
        or a label is no class id."""
        image, target = self.image(index), self.target(index)
        self.check_sizes(index, image, target)
        return Sample(image, target)

    def check_sizes(self, index: int, image: npt.NDArray[Any], target: UInt8Array) -> None:
        """Refuse an image and a target of different sizes. Raises: DatasetError."""
        if image.shape[:2] != target.shape[:2]:
            image_path, label_path = self.pairs[index]
            raise DatasetError(
                f"{image_path} is {image.shape[0]}x{image.shape[1]} but its label {label_path} "
                f"is {target.shape[0]}x{target.shape[1]}: they must be the same size",
                "size",
            )

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
            f"{path} holds the label {value}: want 0..{num_classes - 1}, or {VOID} for void",
            "class",
        )


class Pixels(NamedTuple):
    """Holds a file's pixels as they are stored, and what Pillow says of them."""

    mode: str
    format: str | None
    values: npt.NDArray[Any]
    palette: list[int] | None


def read_pixels(path: Path, kind: str) -> Pixels:
    """Decode a label or another map of numbers. Metadata that Pillow cannot read do not decide, as
    they do not about images. Raises: DatasetError."""
    try:
        body = path.read_bytes()
        try:
            return _pixels(body)
        except Exception:
            without = bare(body, "PNG")
            if without is None:
                raise
            return _pixels(without[0])
    except Exception as error:
        raise unreadable(kind, path, error) from error


def _pixels(body: bytes) -> Pixels:
    with Image.open(io.BytesIO(body)) as image:
        step = _GREY_STEPS.get(str(image.tile[0].args), 1) if image.tile else 1
        values = np.array(image)
        if step != 1:
            values //= np.uint8(step)
        return Pixels(image.mode, image.format, values, image.getpalette())


def read_label_png(path: Path, classes: Sequence[ClassInfo] = ()) -> UInt8Array:
    """Read a greyscale or palette PNG of class ids, uint8 [H,W].

    `classes`: those that the ids are of, by whose colours a palette's numbers are checked.
    Raises: DatasetError.
    """
    return class_ids(read_pixels(path, "label"), classes, path)


def class_ids(pixels: Pixels, classes: Sequence[ClassInfo], path: Path) -> UInt8Array:
    """Take a label's pixels as class ids. Raises: DatasetError if they cannot be meant so."""
    if pixels.mode not in _LABEL_MODES:
        raise DatasetError(
            f"{path} is a {pixels.mode} image: labels must be 8-bit greyscale or palette, one "
            "class id per pixel",
            "label",
        )
    if pixels.format in _LOSSY:
        raise DatasetError(
            f"{path} is no PNG: JPEG and WebP change the class ids. Make it anew as a PNG", "label"
        )
    low, high = int(pixels.values.min(initial=0)), int(pixels.values.max(initial=0))
    if low < 0 or high > VOID:
        raise DatasetError(
            f"{path} holds the label {low if low < 0 else high} in 16 bits: want class ids up to "
            f"{VOID - 1}, or {VOID} for void",
            "class",
        )
    labels = pixels.values.astype(np.uint8)
    if pixels.mode == "P":
        wrong = contradiction(labels, pixels.palette or (), classes, VOID)
        if wrong is not None:
            raise DatasetError(
                f"{path} is a palette PNG: {wrong}. A program that saves images smaller may have "
                "renumbered it: save it as greyscale with the class ids, see 'Labels' in "
                "docs/training.md",
                "label",
            )
    return labels


def read_image(path: Path) -> UInt8Array:
    """Decode RGB uint8 [H,W,3], upright, by the server's own function: a network learns from the
    pixels that it will be asked about.

    Raises: DatasetError, for what the server refuses too.
    """
    try:
        body = path.read_bytes()
        header = read_header(body, max_bytes=sys.maxsize)
        return decode(body, header, max_pixels=sys.maxsize).copy()
    except Exception as error:
        raise unreadable("image", path, error) from error


def unreadable(kind: str, path: Path, error: Exception) -> DatasetError:
    """Make one error of all that decoders raise on damaged or hostile bytes, which is anything."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return DatasetError(f"cannot read the {kind} {path}: {reason}", kind)
