"""NYUDv2 with 40 classes: colour, depth and HHA, from the paper's folders or the labelled .mat.

The folders are those of the authors of FCN (nyud.tar.gz), made by Gupta et al.:
`data/images/img_<id>.png` (colour), `data/depth/img_<id>.png` (16 bits, millimetres, holes filled)
and `data/hha/img_<id>.png`; `segmentation/img_<id>.mat` (segmentation, [H,W], 0 is void, 1..40 the
classes) and the lists `train.txt`, `val.txt`, `test.txt`; trainval is train and val, one after the
other. Images are 425x560.
Source: shelhamer/fcn.berkeleyvision.org, nyud_layers.py and data/nyud; `script_data.m` of Gupta's
code, as guzor/rgdb-semantic-segmentation has it.

Without `data/images`, `nyu_depth_v2_labeled.mat` is read, see `nyudv2_mat`. HHA images are computed
from depth by Gupta's code (`saveHHA.m` of s-gupta/rcnn-depth), not here: they are read from
`data/hha` beside either.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from model.modality import Modality
from training.datasets.base import (
    VOID,
    DatasetError,
    DatasetInfo,
    SegmentationDataset,
    UInt8Array,
    read_image,
)
from training.datasets.depth import joined, read_log_depth
from training.datasets.files import on_disk
from training.datasets.format import Format, Pair, read_ids
from training.datasets.labels import LabelTable, MatLabels
from training.datasets.nyudv2_mat import LABELED, LabeledMat, hha_path, mat_pairs

_CLASSES = 40
_LABELS = MatLabels(
    LabelTable({0: VOID, **{raw: raw - 1 for raw in range(1, _CLASSES + 1)}}), "segmentation"
)

_FOLDERS: dict[Modality, tuple[str, ...]] = {
    "rgb": ("images",),
    "rgbd": ("images", "depth"),
    "hha": ("hha",),
    "rgb-hha": ("images", "hha"),
}
"""Folders of `data`, in the order of the channels. The first has a pair's image file."""


class _Folders(SegmentationDataset):
    def image(self, index: int) -> npt.NDArray[Any]:
        path = self.pairs[index][0]
        image: npt.NDArray[Any] = read_image(path)
        for folder in _FOLDERS[self.info.modality][1:]:
            other = _beside(path, folder)
            more = read_log_depth(other) if folder == "depth" else read_image(other)
            image = joined(image, more, other)
        return image

    def read_target(self, path: Path) -> UInt8Array:
        return _LABELS(path)


def _beside(path: Path, folder: str) -> Path:
    return on_disk(path.parents[1] / folder / path.name)


def _is_mat(root: Path) -> bool:
    return (root / LABELED).is_file() and not (root / "data/images").is_dir()


def _pairs(first: str) -> Callable[[Path, str], list[Pair]]:
    def pairs(root: Path, split: str) -> list[Pair]:
        if _is_mat(root):
            return mat_pairs(root, split)
        images = root / "data" / first
        if split == "trainval" and not (root / "trainval.txt").is_file():
            names = [*read_ids(root / "train.txt"), *read_ids(root / "val.txt")]
        else:
            names = read_ids(root / f"{split}.txt")
        labels = root / "segmentation"
        return [(images / f"img_{name}.png", labels / f"img_{name}.mat") for name in names]

    return pairs


def _open(root: Path, split: str, info: DatasetInfo, pairs: list[Pair]) -> SegmentationDataset:
    if _is_mat(root):
        labeled = LabeledMat(info, pairs, split, root)
        further = [hha_path(root, n) for n in labeled.numbers] if "hha" in info.modality else []
        data: SegmentationDataset = labeled
    else:
        data = _Folders(info, pairs, split)
        folders = _FOLDERS[info.modality][1:]
        further = [_beside(image, folder) for image, _ in pairs for folder in folders]
    missing = [path for path in further if not path.is_file()]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(further)} images of depth or HHA are missing, the first is "
            f"{missing[0]}"
        )
    return data


def _format(modality: Modality) -> Format:
    folders = _FOLDERS[modality]
    beside = "" if "hha" not in modality else " with data/hha"
    return Format(
        layout=(
            f"{', '.join(f'data/{folder}' for folder in folders)}, segmentation, train.txt, "
            f"val.txt and test.txt; or {LABELED}, classMapping40.mat and splits.mat{beside}"
        ),
        where=_WHERE,
        splits={"train": 381, "val": 414, "trainval": 795, "test": 654},
        pairs=_pairs(folders[0]),
        classes="nyudv2.yaml",
        modality=modality,
        open=_open,
    )


_WHERE = (
    "http://dl.caffe.berkeleyvision.org/nyud.tar.gz (folders, with depth and HHA), and the lists "
    "from data/nyud of https://github.com/shelhamer/fcn.berkeleyvision.org; or the labelled .mat "
    "from http://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat, "
    "splits.mat from http://horatio.cs.nyu.edu/mit/silberman/indoor_seg_sup/splits.mat and "
    "classMapping40.mat from https://github.com/ankurhanda/nyuv2-meta-data (it has no HHA, which "
    "https://github.com/s-gupta/rcnn-depth computes)"
)

NYUDV2 = _format("rgb")
NYUDV2_RGBD = _format("rgbd")
NYUDV2_HHA = _format("hha")
NYUDV2_RGB_HHA = _format("rgb-hha")
