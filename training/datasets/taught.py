"""Gives a data set's labels together with what another network said of the same images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.datasets.base import DatasetError, Sample, SegmentationDataset, UInt8Array


def map_path(folder: Path, image: Path) -> Path:
    """Name the file that holds the map of an image."""
    return folder / f"{image.stem}.npy"


class Taught(SegmentationDataset):
    """Gives a data set of one labelling with targets [H,W,1+C]: the class ids, and each class's
    probability in 255ths.

    Of each image `folder` holds a map, uint8 [C,h,w] in 255ths, which covers the whole image and
    is scaled to its size. A map's sum over C may be below 255: the rest is of no class. Whatever
    transforms a label does the same to the map, and void beyond the image's edge is void in both.
    """

    def __init__(self, data: SegmentationDataset, folder: Path) -> None:
        if len(data.info.heads) > 1:
            raise DatasetError("distill.maps is for one labelling: leave it out")
        super().__init__(data.info, data.pairs, data.split)
        self._data, self._folder = data, folder
        absent = [each for each, _ in data.pairs if not map_path(folder, each).is_file()]
        if absent:
            raise DatasetError(
                f"distill.maps: {len(absent)} of {len(data.pairs)} images have no map in {folder}, "
                f"the first {map_path(folder, absent[0]).name}: make maps of the whole split"
            )

    def __getitem__(self, index: int) -> Sample:
        """Read image, label and map. Raises: DatasetError."""
        image, target = self._data[index]
        planes = self._planes(index, target.shape)
        return Sample(image, np.concatenate([target[..., None], planes], axis=-1))

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        return self._data.image(index)

    def target(self, index: int) -> UInt8Array:
        return self._data.target(index)

    def read_target(self, path: Path) -> UInt8Array:
        return self._data.read_target(path)

    def _planes(self, index: int, size: tuple[int, ...]) -> UInt8Array:
        """Read a map, scaled to `size`: uint8 [H,W,C]. Raises: DatasetError."""
        path = map_path(self._folder, self.pairs[index][0])
        try:
            planes = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DatasetError(f"distill.maps: cannot read {path}: {error}") from error
        if planes.dtype != np.uint8 or planes.ndim != 3 or len(planes) != self.num_classes:
            raise DatasetError(
                f"distill.maps: {path} is {planes.dtype} {list(planes.shape)}, want uint8 "
                f"[{self.num_classes},h,w], the classes' probabilities in 255ths"
            )
        height, width = size
        scaled = [
            np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
            for plane in planes
        ]
        return np.stack(scaled, axis=-1)
