"""Miniature copies of NYUDv2 with depth and HHA: the paper's folders, and the labelled .mat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.unit.training import miniatures

SIZE = (480, 640)
COUNT = 4

_HEADER = (
    b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Fri Jun 01 12:00:00 2012 "
    b"HDF5 schema 1.00 ."
)


def folders(root: Path, splits: dict[str, Sequence[str]]) -> dict[str, miniatures.Labels]:
    """Write what nyud.tar.gz holds, with `data/depth` and `data/hha`; depth is 1000 mm and up by
    the pixel."""
    written = miniatures.nyudv2(root, splits)
    height, width = miniatures.HEIGHT, miniatures.WIDTH
    for name in written:
        depth = 1000 + np.arange(height * width, dtype=np.uint16).reshape(height, width)
        save(root / f"data/depth/img_{name}.png", depth)
        hha = np.arange(height * width * 3, dtype=np.uint8)[::-1].reshape(height, width, 3)
        save(root / f"data/hha/img_{name}.png", hha)
    return written


def save(path: Path, array: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold a scene as MATLAB shows it: uint8 [480,640,3], float32 [480,640] in metres, uint16
    [480,640]."""

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint16]


def scenes() -> list[Scene]:
    height, width = SIZE
    rows, columns = np.mgrid[:height, :width]
    found = []
    for index in range(COUNT):
        image = np.stack([rows % 256, columns % 256, (rows + columns + index) % 256], axis=-1)
        depth = 1 + index + rows / 100 + columns / 1000
        labels = (rows // 10 * 7 + columns // 10 + index) % 895
        found.append(
            Scene(image.astype(np.uint8), depth.astype(np.float32), labels.astype(np.uint16))
        )
    return found


def mapping() -> npt.NDArray[np.uint8]:
    """mapClass of `classMapping40.mat`: for each of the 894 classes one of 1..40."""
    return (np.arange(894) % 40 + 1).astype(np.uint8)


def labeled_mat(root: Path, train: Sequence[int], test: Sequence[int]) -> list[Scene]:
    """`nyu_depth_v2_labeled.mat` and what lies beside it; `train`, `test`: from 1."""
    found = scenes()
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        # MATLAB's axes, reversed: its last, the image, comes first.
        images = np.stack([scene.image.transpose(2, 1, 0) for scene in found])
        depths = np.stack([scene.depth.T for scene in found])
        labels = np.stack([scene.labels.T for scene in found])
        for name, array, kind in (
            ("images", images, b"uint8"),
            ("depths", depths, b"single"),
            ("labels", labels, b"uint16"),
        ):
            chunk = (1, *array.shape[1:])
            data = file.create_dataset(
                name, data=array, chunks=chunk, compression="gzip", compression_opts=1
            )
            data.attrs["MATLAB_class"] = np.bytes_(kind)
        cells = file.create_dataset("names", (1, 894), h5py.ref_dtype)
        cells.attrs["MATLAB_class"] = np.bytes_(b"cell")
        text = np.frombuffer(b"wall", np.uint8).astype(np.uint16)
        wall = file.create_group("#refs#").create_dataset("a", data=text[:, None])
        wall.attrs["MATLAB_class"] = np.bytes_(b"char")
        cells[0, 0] = wall.ref
    with path.open("r+b") as raw:
        raw.write(_HEADER.ljust(116) + bytes(8) + b"\x00\x02IM" + bytes(384))
    miniatures.save_mat(
        root / "classMapping40.mat",
        mapClass=mapping()[None],
        className=np.array([f"class {n}" for n in range(1, 41)], object)[None],
    )
    miniatures.save_mat(
        root / "splits.mat",
        trainNdxs=np.array(train, np.float64)[:, None],
        testNdxs=np.array(test, np.float64)[:, None],
    )
    return found
