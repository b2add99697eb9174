"""SIFT Flow: outdoor scenes of 256x256 with two labellings, 33 semantic and 3 geometric classes.

`Images`, `SemanticLabels` and `GeoLabels`, each with the folder
`spatial_envelope_256x256_static_8outdoorcategories`; a label is a .mat whose S is [H,W]. Semantic:
0 is void, 1..33 the classes. Geometric: -1 (and 0) is void, 1..3 the classes. `siftflow_both` has
both labellings, for a network of two heads. The splits are the
authors' lists `trainval.txt` and `test.txt`, which leave out two images without annotation.
Source: shelhamer/fcn.berkeleyvision.org, data/sift-flow and siftflow_layers.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.datasets.base import (
    VOID,
    DatasetError,
    DatasetInfo,
    SegmentationDataset,
    UInt8Array,
    check_labels,
)
from training.datasets.files import on_disk
from training.datasets.format import Format, LabelReader, Pair, read_ids
from training.datasets.labels import LabelTable, MatLabels

SEMANTIC, GEOMETRIC = "sem", "geo"
"""Names of the heads. Source: `siftflow-fcn8s/net.py` of shelhamer/fcn.berkeleyvision.org."""

_SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
_SPLITS = {"trainval": 2486, "test": 200}
_LISTS = "trainval.txt and test.txt of data/sift-flow of shelhamer/fcn.berkeleyvision.org"
_WHERE = (
    "http://www.cs.unc.edu/~jtighe/Papers/ECCV10/siftflow/SiftFlowDataset.zip, and the lists from "
    "https://github.com/shelhamer/fcn.berkeleyvision.org"
)


def _read_s(classes: int, *void: int) -> MatLabels:
    ids = {**dict.fromkeys(void, VOID), **{raw: raw - 1 for raw in range(1, classes + 1)}}
    return MatLabels(LabelTable(ids), "S")


_READERS = {SEMANTIC: _read_s(33, 0), GEOMETRIC: _read_s(3, -1, 0)}


def _pairs(root: Path, split: str, labels: str) -> list[Pair]:
    images = root / "Images" / _SCENES
    folder = root / labels / _SCENES
    names = read_ids(root / f"{split}.txt")
    return [(images / f"{name}.jpg", folder / f"{name}.mat") for name in names]


def _semantic_pairs(root: Path, split: str) -> list[Pair]:
    return _pairs(root, split, "SemanticLabels")


def _geometric_pairs(root: Path, split: str) -> list[Pair]:
    return _pairs(root, split, "GeoLabels")


class _Both(SegmentationDataset):
    """Gives the two labellings of each image, [H,W,2]. A pair names the semantic label file; the
    geometric one lies in the other folder under the same name."""

    def target(self, index: int) -> UInt8Array:
        semantic_path = self.pairs[index][1]
        geometric_path = _geometric_of(semantic_path)
        semantic, geometric = _READERS[SEMANTIC](semantic_path), _READERS[GEOMETRIC](geometric_path)
        sizes = self.info.head_sizes
        check_labels(semantic, sizes[SEMANTIC], semantic_path)
        check_labels(geometric, sizes[GEOMETRIC], geometric_path)
        if semantic.shape != geometric.shape:
            raise DatasetError(
                f"{semantic_path} is {semantic.shape[0]}x{semantic.shape[1]} but {geometric_path} "
                f"is {geometric.shape[0]}x{geometric.shape[1]}: they must be the same size"
            )
        return np.stack([semantic, geometric], axis=-1)


def _geometric_of(semantic: Path) -> Path:
    return on_disk(semantic.parents[2] / "GeoLabels" / _SCENES / semantic.name)


def _open_both(
    _root: Path, split: str, info: DatasetInfo, pairs: list[Pair]
) -> SegmentationDataset:
    missing = [path for _, label in pairs if not (path := _geometric_of(label)).is_file()]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(pairs)} geometric labels of split {split!r} are missing, the "
            f"first is {missing[0]}"
        )
    return _Both(info, pairs, split)


def _semantic_reader(_root: Path, _info: DatasetInfo) -> LabelReader:
    return _READERS[SEMANTIC]


def _geometric_reader(_root: Path, _info: DatasetInfo) -> LabelReader:
    return _READERS[GEOMETRIC]


SIFTFLOW = Format(
    layout=f"Images and SemanticLabels, and {_LISTS}",
    where=_WHERE,
    splits=_SPLITS,
    pairs=_semantic_pairs,
    classes="siftflow.yaml",
    reader=_semantic_reader,
)

SIFTFLOW_GEOMETRIC = Format(
    layout=f"Images and GeoLabels, and {_LISTS}",
    where=_WHERE,
    splits=_SPLITS,
    pairs=_geometric_pairs,
    classes="siftflow_geometric.yaml",
    reader=_geometric_reader,
)

SIFTFLOW_BOTH = Format(
    layout=f"Images, SemanticLabels and GeoLabels, and {_LISTS}",
    where=_WHERE,
    splits=_SPLITS,
    pairs=_semantic_pairs,
    classes={SEMANTIC: "siftflow.yaml", GEOMETRIC: "siftflow_geometric.yaml"},
    open=_open_both,
)
