"""Finds data sets by name. Each is read from a path; none is ever downloaded."""

from __future__ import annotations

from pathlib import Path

from training.datasets.ade20k import ADE20K
from training.datasets.base import DatasetError, DatasetInfo, SegmentationDataset
from training.datasets.cityscapes import CITYSCAPES
from training.datasets.coco_stuff import COCO_STUFF
from training.datasets.folder import CAMVID, FACADE, FOLDER, load_info
from training.datasets.format import Format, open_split
from training.datasets.nyudv2 import NYUDV2, NYUDV2_HHA, NYUDV2_RGB_HHA, NYUDV2_RGBD
from training.datasets.pascal_context import PASCAL_CONTEXT
from training.datasets.siftflow import SIFTFLOW, SIFTFLOW_BOTH, SIFTFLOW_GEOMETRIC
from training.datasets.voc import SBD, VOC2011, VOC2012, VOC_ANIMALS

DATASETS: dict[str, Format] = {
    "ade20k": ADE20K,
    "camvid": CAMVID,
    "cityscapes": CITYSCAPES,
    "coco_stuff": COCO_STUFF,
    "facade": FACADE,
    "folder": FOLDER,
    "nyudv2": NYUDV2,
    "nyudv2_hha": NYUDV2_HHA,
    "nyudv2_rgb_hha": NYUDV2_RGB_HHA,
    "nyudv2_rgbd": NYUDV2_RGBD,
    "pascal_context": PASCAL_CONTEXT,
    "sbd": SBD,
    "siftflow": SIFTFLOW,
    "siftflow_both": SIFTFLOW_BOTH,
    "siftflow_geometric": SIFTFLOW_GEOMETRIC,
    "voc2011": VOC2011,
    "voc2012": VOC2012,
    "voc_animals": VOC_ANIMALS,
}


def find_format(name: str) -> Format:
    """Look up a data set's format. Raises: DatasetError for an unknown name."""
    if name not in DATASETS:
        raise DatasetError(f"unknown data set {name!r}: want one of {', '.join(DATASETS)}")
    return DATASETS[name]


def class_info(form: Format, root: Path, classes: Path | None = None) -> DatasetInfo:
    """Load the data set's class lists; `classes` takes the place of the first or only one.

    Raises: DatasetError.
    """
    here = Path(__file__).parent
    if form.classes is None:
        lists = {"": root / "classes.yaml"}
    elif isinstance(form.classes, str):
        lists = {"": here / form.classes}
    else:
        lists = {head: here / name for head, name in form.classes.items()}
    first = next(iter(lists))
    lists[first] = classes or lists[first]
    infos = {head: load_info(path) for head, path in lists.items()}
    heads = {head: info.classes for head, info in infos.items()}
    return DatasetInfo(heads, infos[first].data, form.modality)


def open_dataset(
    name: str,
    root: Path,
    split: str,
    classes: Path | None = None,
    *,
    labels_only: bool = False,
) -> SegmentationDataset:
    """Open one split. `classes` overrides the data set's own class list; `labels_only` says that no
    image will be read.

    Raises: DatasetError for an unknown name, a missing folder or file, or a bad class list.
    """
    form = find_format(name)
    info = class_info(form, root, classes)
    return open_split(name, form, root, split, info, labels_only=labels_only)


def guess_dataset(root: Path, classes: Path | None = None) -> str:
    """Guess which data set is meant where no name is given: `folder` with a class list, else
    `camvid`."""
    has_list = classes is not None or (root / "classes.yaml").is_file()
    return "folder" if has_list else "camvid"


__all__ = [
    "DATASETS",
    "DatasetError",
    "DatasetInfo",
    "Format",
    "SegmentationDataset",
    "class_info",
    "find_format",
    "guess_dataset",
    "open_dataset",
]
