"""Miniature copies of public data sets: their folders, lists and file formats, images drawn.

Every image is HEIGHT x WIDTH. Functions return the labels they wrote, as class ids and VOID.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.io import savemat
from scipy.sparse import csc_matrix

from training.datasets.base import VOID

HEIGHT, WIDTH = 5, 7
SCENES = "spatial_envelope_256x256_static_8outdoorcategories"

Labels = npt.NDArray[np.uint8]


def labels_of(name: str, classes: int) -> Labels:
    """uint8 [HEIGHT,WIDTH], different for each name, with a pixel of the last class, without
    VOID."""
    rng = np.random.default_rng(list(name.encode()))
    labels = rng.integers(0, classes, (HEIGHT, WIDTH), dtype=np.uint8)
    labels[0, 0] = classes - 1
    return labels


def save_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
    Image.fromarray(ramp).save(path)


def save_palette_png(path: Path, labels: npt.NDArray[Any]) -> None:
    """Save as VOC does: mode P, the value of a pixel is its class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(np.random.default_rng(0).bytes(768))
    image.save(path)


def save_grey_png(path: Path, labels: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)


def save_mat(path: Path, **variables: Any) -> None:
    """MATLAB v5, compressed, as the originals are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, do_compression=True)


def save_list(path: Path, names: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def voc(root: Path, year: int, splits: dict[str, Sequence[str]]) -> dict[str, Labels]:
    """VOCdevkit/VOC<year>; the outline of each object, here one row, is void."""
    folder = root / f"VOCdevkit/VOC{year}"
    written = {}
    for split, names in splits.items():
        save_list(folder / f"ImageSets/Segmentation/{split}.txt", names)
        for name in names:
            written[name] = labels_of(name, 21)
            written[name][2] = VOID
            save_image(folder / f"JPEGImages/{name}.jpg")
            save_palette_png(folder / f"SegmentationClass/{name}.png", written[name])
    return written


def sbd(root: Path, splits: dict[str, Sequence[str]]) -> dict[str, Labels]:
    """benchmark_RELEASE/dataset. A label is a struct as in the real files: a cell of 20 sparse
    boundary maps, the segmentation, the categories present."""
    folder = root / "benchmark_RELEASE/dataset"
    written = {}
    for split, names in splits.items():
        save_list(folder / f"{split}.txt", names)
        for name in names:
            written[name] = labels_of(name + "/sbd", 21)
            save_image(folder / f"img/{name}.jpg")
            boundaries = np.empty((20, 1), object)
            for index in range(20):
                boundaries[index, 0] = csc_matrix(np.eye(HEIGHT, WIDTH))
            present = np.unique(written[name][written[name] > 0])[:, None]
            struct = {
                "Boundaries": boundaries,
                "Segmentation": written[name],
                "CategoriesPresent": present,
            }
            save_mat(folder / f"cls/{name}.mat", GTcls=struct)
    return written


def siftflow(root: Path, splits: dict[str, Sequence[str]]) -> dict[str, tuple[Labels, Labels]]:
    """Semantic and geometric labels; a pixel of each is void."""
    written = {}
    for split, names in splits.items():
        save_list(root / f"{split}.txt", names)
        for name in names:
            semantic, geometric = labels_of(name, 33), labels_of(name, 3)
            semantic[1, 1] = geometric[1, 2] = VOID
            save_image(root / f"Images/{SCENES}/{name}.jpg")
            # Doubles, as MATLAB writes what nobody converted; with the list of names beside S.
            save_mat(
                root / f"SemanticLabels/{SCENES}/{name}.mat",
                S=np.where(semantic == VOID, 0.0, semantic + 1.0),
                names=np.array([["awning"], ["balcony"]], object),
            )
            save_mat(
                root / f"GeoLabels/{SCENES}/{name}.mat",
                S=np.where(geometric == VOID, -1, geometric.astype(np.int16) + 1).astype(np.int16),
            )
            written[name] = (semantic, geometric)
    return written


def nyudv2(root: Path, splits: dict[str, Sequence[str]]) -> dict[str, Labels]:
    written = {}
    for split, names in splits.items():
        save_list(root / f"{split}.txt", names)
        for name in names:
            written[name] = labels_of(name, 40)
            written[name][1, 1] = VOID
            save_image(root / f"data/images/img_{name}.png")
            raw = np.where(written[name] == VOID, 0, written[name] + 1).astype(np.uint8)
            save_mat(root / f"segmentation/img_{name}.mat", segmentation=raw)
    return written


def pascal_context(root: Path, splits: dict[str, Sequence[str]], names: Sequence[str]) -> None:
    """`names`: of the 59 classes; the full list has them at their own numbers, 0 is background."""
    listed = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
    full = [f"{n}: {listed.get(name, name)}" for n, name in enumerate(names, 1)]
    save_list(root / "labels.txt", full)
    save_list(root / "59_labels.txt", [f"{n}: {name}" for n, name in enumerate(names, 1)])
    for split, images in splits.items():
        save_list(root / f"VOCdevkit/VOC2010/ImageSets/Main/{split}.txt", images)
        for name in images:
            save_image(root / f"VOCdevkit/VOC2010/JPEGImages/{name}.jpg")
            save_mat(root / f"trainval/{name}.mat", LabelMap=labels_of(name, 60).astype(np.uint16))
