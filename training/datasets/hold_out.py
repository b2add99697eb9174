"""Holds out images by their names: frames of one film resemble each other, so a split drawn from
them says little of another film."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy.typing as npt

from training.datasets.base import DatasetError, Sample, SegmentationDataset, UInt8Array

_SHOWN = 8


def hold_out(
    data: SegmentationDataset, pattern: str
) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Splits `data` into the images whose names (without ending) do not match `pattern`, with `*`,
    `?` and `[...]`, and those that do.

    Raises: DatasetError if either part is empty, with how the names begin.
    """
    names = [image.stem for image, _label in data.pairs]
    held = [index for index, name in enumerate(names) if fnmatchcase(name, pattern)]
    rest = sorted(set(range(len(names))) - set(held))
    if not held or not rest:
        raise DatasetError(
            f"data.hold_out={pattern!r} matches {'no' if rest else 'every'} image of split "
            f"{data.split!r}: {_sequences(names)}"
        )
    return _Part(data, rest, data.split), _Part(data, held, f"{data.split}, {pattern}")


def _sequences(names: Sequence[str]) -> str:
    """Say how the names begin, where that tells sequences apart, and what to do."""
    counts = Counter(re.split(r"[_\-. ]", name, maxsplit=1)[0] for name in names)
    if 1 < len(counts) < len(names):
        shown = ", ".join(f"{name} ({count})" for name, count in counts.most_common(_SHOWN))
        return f"their names begin with {shown}; give one of these and *"
    return (
        f"their names, {names[0]} for one, do not tell sequences apart by how they begin: give a "
        "pattern that those to hold out match"
    )


class _Part(SegmentationDataset):
    """Gives some images of a data set."""

    def __init__(self, data: SegmentationDataset, indices: Sequence[int], split: str) -> None:
        super().__init__(data.info, [data.pairs[index] for index in indices], split)
        self._data, self._indices = data, indices

    def __getitem__(self, index: int) -> Sample:
        return self._data[self._indices[index]]

    def image(self, index: int) -> npt.NDArray[Any]:
        return self._data.image(self._indices[index])

    def target(self, index: int) -> UInt8Array:
        return self._data.target(self._indices[index])

    def read_target(self, path: Path) -> UInt8Array:
        return self._data.read_target(path)
