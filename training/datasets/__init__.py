"""Data sets by name. Each is read from a path; none is ever downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from training.datasets.base import DatasetError, DatasetInfo, SegmentationDataset
from training.datasets.folder import load_info, open_folder

Opener = Callable[[Path, str, Path | None], SegmentationDataset]


def _open_camvid(root: Path, split: str, classes: Path | None) -> SegmentationDataset:
    return open_folder(root, split, load_info(classes or Path(__file__).parent / "camvid.yaml"))


def _open_folder(root: Path, split: str, classes: Path | None) -> SegmentationDataset:
    return open_folder(root, split, load_info(classes or root / "classes.yaml"))


DATASETS: dict[str, Opener] = {"camvid": _open_camvid, "folder": _open_folder}


def open_dataset(
    name: str, root: Path, split: str, classes: Path | None = None
) -> SegmentationDataset:
    """Open one split. `classes` overrides the data set's own class list.

    Raises: DatasetError for an unknown name, a missing folder or a bad class list.
    """
    if name not in DATASETS:
        raise DatasetError(f"unknown data set {name!r}: want one of {', '.join(DATASETS)}")
    return DATASETS[name](root, split, classes)


__all__ = ["DATASETS", "DatasetError", "DatasetInfo", "SegmentationDataset", "open_dataset"]
