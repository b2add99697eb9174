"""Scales large images down, with their labels, so that their longest side is no longer than
wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.datasets.base import DatasetError, Sample, SegmentationDataset, UInt8Array

Size = tuple[int, int]
"""(height, width) in pixels."""


def shrunk_size(size: Size, longest_px: int | None) -> Size:
    """Compute the size after scaling down to `longest_px`; a smaller image stays as it is."""
    longest = max(size)
    if longest_px is None or longest <= longest_px:
        return size
    height, width = (max(1, round(side * longest_px / longest)) for side in size)
    return height, width


def resize_image(image: npt.NDArray[Any], size: Size) -> UInt8Array:
    """Scales uint8 RGB [H,W,3], averaging what falls on one pixel."""
    if image.shape[:2] == size:
        return np.asarray(image, np.uint8)
    method = Image.Resampling.BILINEAR  # which in Pillow averages when it scales down
    return np.asarray(Image.fromarray(image).resize(size[::-1], method))


def resize_label(label: UInt8Array, size: Size) -> UInt8Array:
    """Scales uint8 [H,W] class ids, each pixel the nearest one's."""
    if label.shape == size:
        return label
    return np.asarray(Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST))


class Resized(SegmentationDataset):
    """Gives a data set of RGB images and one labelling, scaled down."""

    def __init__(self, data: SegmentationDataset, longest_px: int) -> None:
        if data.info.modality != "rgb" or len(data.info.heads) > 1:
            raise DatasetError("data.resize is for RGB images with one labelling: leave it out")
        super().__init__(data.info, data.pairs, data.split)
        self._data, self._longest_px = data, longest_px

    def __getitem__(self, index: int) -> Sample:
        image, target = self._data[index]
        size = shrunk_size((image.shape[0], image.shape[1]), self._longest_px)
        return Sample(resize_image(image, size), resize_label(target, size))

    def image(self, index: int) -> npt.NDArray[Any]:
        image = self._data.image(index)
        return resize_image(image, shrunk_size(image.shape[:2], self._longest_px))

    def target(self, index: int) -> UInt8Array:
        target = self._data.target(index)
        return resize_label(target, shrunk_size(target.shape[:2], self._longest_px))

    def read_target(self, path: Path) -> UInt8Array:
        return self._data.read_target(path)
