"""NYUDv2's own file, `nyu_depth_v2_labeled.mat`, with its 894 classes mapped to the paper's 40.

MATLAB v7.3, which is HDF5 and holds every array with its axes reversed: `images` [N,3,W,H] uint8,
`depths` [N,W,H] single in metres with the holes filled, `labels` [N,W,H] uint16, 0 for none. Of its
480x640 pixels the white frame is cut off, as Gupta et al. did: 425x560 are left.
Beside it, both MATLAB v5: `classMapping40.mat` (mapClass: 1..40 for each of the 894) and
`splits.mat` (trainNdxs, 795, and testNdxs, 654, counting from 1). Image n is `img_<5000 + n>` in
the folders and in the authors' lists, which split trainval into train and val.
Source: cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html; `script_data.m` and `cropIt.m` of Gupta's
code, as guzor/rgdb-semantic-segmentation has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.datasets.base import (
    VOID,
    DatasetError,
    DatasetInfo,
    SegmentationDataset,
    UInt8Array,
    check_labels,
    read_image,
)
from training.datasets.depth import joined, log_depth
from training.datasets.files import on_disk
from training.datasets.format import Pair, read_ids
from training.datasets.labels import LabelTable, read_vector

LABELED = "nyu_depth_v2_labeled.mat"
_MAPPING, _SPLITS = "classMapping40.mat", "splits.mat"

_FIRST_ID = 5000
_SIZE = (480, 640)
_INNER = np.s_[45:470, 40:600]

_SPLIT_KEYS = {"trainval": "trainNdxs", "test": "testNdxs"}


def mat_pairs(root: Path, split: str) -> list[Pair]:
    """Name the one file once for each image of the split. Raises: DatasetError."""
    path = root / LABELED
    return [(path, path)] * len(_numbers(root, split))


def hha_path(root: Path, number: int) -> Path:
    """Locate the HHA of image `number`, counting from 1."""
    return on_disk(root / f"data/hha/img_{_FIRST_ID + number}.png")


def _numbers(root: Path, split: str) -> list[int]:
    """Read the numbers of a split's images, counting from 1. Raises: DatasetError."""
    if split in _SPLIT_KEYS:
        return [int(n) for n in read_vector(root / _SPLITS, _SPLIT_KEYS[split])]
    path = root / f"{split}.txt"
    names = read_ids(path)
    try:
        return [int(name) - _FIRST_ID for name in names]
    except ValueError as error:
        raise DatasetError(f"{path}: want the authors' numbers, as 5003: {error}") from error


class LabeledMat(SegmentationDataset):
    """Reads the file, opened anew for every image so that worker processes share nothing."""

    def __init__(self, info: DatasetInfo, pairs: Sequence[Pair], split: str, root: Path) -> None:
        super().__init__(info, pairs, split)
        self.root, self.numbers = root, _numbers(root, split)
        mapped = read_vector(root / _MAPPING, "mapClass")
        ids = {0: VOID, **{raw: int(one) - 1 for raw, one in enumerate(mapped, 1)}}
        self._table = LabelTable(ids)

    def image(self, index: int) -> npt.NDArray[Any]:
        number, modality = self.numbers[index], self.info.modality
        if modality == "hha":
            return read_image(hha_path(self.root, number))
        color = self._read("images", number, 3).transpose(1, 2, 0)
        if modality == "rgbd":
            millimetres = 1000 * self._read("depths", number)
            where = f"image {number} of {self.root / LABELED}"
            return joined(color, log_depth(millimetres, where), self.root / LABELED)
        if modality == "rgb-hha":
            path = hha_path(self.root, number)
            return joined(color, read_image(path), path)
        return np.ascontiguousarray(color)

    def target(self, index: int) -> UInt8Array:
        path = self.root / LABELED
        target = self._table(self._read("labels", self.numbers[index]), path)
        check_labels(target, self.num_classes, path)
        return target

    def _read(self, name: str, number: int, *channels: int) -> npt.NDArray[Any]:
        """Read [channels,425,560] of image `number`. Raises: DatasetError."""
        import h5py  # here: only who has this file needs it

        path, height, width = self.root / LABELED, *_SIZE
        try:
            with h5py.File(path) as file:
                array = file[name]
                if number < 1 or array.shape != (array.shape[0], *channels, width, height):
                    raise DatasetError(
                        f"{path}: {name} is {'x'.join(map(str, array.shape))}: want "
                        f"{'x'.join(map(str, ('N', *channels, width, height)))}"
                    )
                if number > array.shape[0]:
                    raise DatasetError(
                        f"{path} has {array.shape[0]} images, but a split names number {number}"
                    )
                found = np.moveaxis(array[number - 1], -1, -2)
        except DatasetError:
            raise
        except Exception as error:  # h5py names no set of errors for a damaged file
            raise DatasetError(f"cannot read {name} of {path}: {error}") from error
        return np.ascontiguousarray(found[(..., *_INNER)])
