"""Reads label files that hold the class list's colours instead of its ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model.contract import ClassInfo
from training.datasets.base import VOID, DatasetError, UInt8Array, class_ids, read_pixels

_BLACK = 0
_UNKNOWN = -1


class ColorLabels:
    """Reads RGB images by exact colour, and other labels as class ids.

    Black is void unless a class is black. Alpha is dropped. A colour that is nearly a class's is an
    error, not that class: it shows a mask that was resized smoothly or saved as JPEG.
    """

    def __init__(self, classes: Sequence[ClassInfo]) -> None:
        self._classes = classes

    def __call__(self, path: Path) -> UInt8Array:
        """Read a label as uint8 [H,W]. Raises: DatasetError, naming a colour without a class and
        where it is."""
        pixels = read_pixels(path, "label")
        if pixels.mode not in ("RGB", "RGBA"):
            return class_ids(pixels, self._classes, path)
        rgb = pixels.values[..., :3]
        ids = {_BLACK: VOID} | self._ids(path)
        packed = (rgb.astype(np.int32) << np.array([16, 8, 0])).sum(axis=2)
        found, inverse = np.unique(packed, return_inverse=True)
        table = np.array([ids.get(int(color), _UNKNOWN) for color in found])
        if (table == _UNKNOWN).any():
            grey = (rgb == rgb[..., :1]).all()
            hint = ". It is grey throughout: if its values are class ids, save it as greyscale"
            hint = hint if grey else ""
            row, column = np.argwhere(np.isin(packed, found[table == _UNKNOWN]))[0]
            raise DatasetError(
                f"{path} has the colour {tuple(rgb[row, column].tolist())} at row {row}, column "
                f"{column}, which no class of the class list has: give it to a class, or make it "
                f"black for void{hint}",
                "label",
            )
        return table.astype(np.uint8)[inverse].reshape(packed.shape)

    def _ids(self, path: Path) -> dict[int, int]:
        ids: dict[int, int] = {}
        for info in self._classes:
            red, green, blue = info.color
            color = red << 16 | green << 8 | blue
            if color in ids:
                other = self._classes[ids[color]].name
                raise DatasetError(
                    f"{path} is coloured, but the classes {other!r} and {info.name!r} have the "
                    "same colour in the class list: change one"
                )
            ids[color] = info.id
        return ids
