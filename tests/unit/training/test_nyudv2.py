"""NYUDv2 with depth and HHA, from the paper's folders and from the labelled .mat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cli.main import main
from tests.unit.training import miniatures, nyu
from training.datasets import DatasetError, open_dataset
from training.datasets.base import VOID
from training.datasets.labels import read_vector

SPLITS: dict[str, Sequence[str]] = {"train": ["5003"], "val": ["5001"], "test": ["5002"]}
INNER = np.s_[45:470, 40:600]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    nyu.folders(tmp_path, SPLITS)
    return tmp_path


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody may change it."""
    root = tmp_path_factory.mktemp("mat")
    nyu.labeled_mat(root, train=[4, 1], test=[2])
    return root


def read_pixels(path: Path) -> npt.NDArray[Any]:
    return np.array(Image.open(path))


def test_rgbd(folders: Path) -> None:
    image = open_dataset("nyudv2_rgbd", folders, "trainval")[0].image
    assert image.dtype == np.float32
    assert image.shape == (miniatures.HEIGHT, miniatures.WIDTH, 4)
    assert (image[..., :3] == read_pixels(folders / "data/images/img_5003.png")).all()
    assert image[0, 0, 3] == pytest.approx(np.log(1000))
    assert image[-1, -1, 3] == pytest.approx(np.log(1034))


def test_hha(folders: Path) -> None:
    data = open_dataset("nyudv2_hha", folders, "test")
    hha = read_pixels(folders / "data/hha/img_5002.png")
    assert data.pairs[0][0].name == "img_5002.png"
    assert (data[0].image == hha).all()
    both = open_dataset("nyudv2_rgb_hha", folders, "test")[0].image
    assert both.dtype == np.uint8
    color = read_pixels(folders / "data/images/img_5002.png")
    assert (both == np.concatenate([color, hha], axis=2)).all()


@pytest.mark.parametrize(
    ("name", "folder"),
    [("nyudv2_rgbd", "depth"), ("nyudv2_hha", "hha"), ("nyudv2_rgb_hha", "hha")],
)
def test_a_missing_image(folders: Path, name: str, folder: str) -> None:
    (folders / f"data/{folder}/img_5001.png").unlink()
    with pytest.raises(DatasetError, match=rf"missing.*{folder}/img_5001\.png.*nyud\.tar\.gz"):
        open_dataset(name, folders, "val")


def test_depth_with_holes(folders: Path) -> None:
    path = folders / "data/depth/img_5001.png"
    depth = read_pixels(path).astype(np.uint16)
    depth[2, 3] = 0
    nyu.save(path, depth)
    with pytest.raises(DatasetError, match=r"img_5001\.png has pixels without depth: want"):
        open_dataset("nyudv2_rgbd", folders, "val")[0]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (np.full((miniatures.HEIGHT, miniatures.WIDTH), 7, np.uint8), "is no depth: want a 16-bit"),
        (
            np.full((miniatures.HEIGHT, miniatures.WIDTH, 3), 7, np.uint8),
            "is no depth: want a 16-bit",
        ),
        (np.full((2, 3), 700, np.uint16), "is 2x3 but its colour image is 5x7"),
        (None, "cannot read the depth"),
    ],
)
def test_wrong_depth(folders: Path, content: npt.NDArray[Any] | None, complaint: str) -> None:
    path = folders / "data/depth/img_5001.png"
    if content is None:
        path.write_bytes(b"hello")
    else:
        nyu.save(path, content)
    with pytest.raises(DatasetError, match=complaint):
        open_dataset("nyudv2_rgbd", folders, "val")[0]


def test_mat(mat: Path) -> None:
    """Every pixel within the frame, of the image that the split names."""
    scenes = nyu.scenes()
    data = open_dataset("nyudv2", mat, "trainval")
    assert len(data) == 2
    for index, number in enumerate((4, 1)):
        sample, scene = data[index], scenes[number - 1]
        assert sample.image.shape == (425, 560, 3)
        assert (sample.image == scene.image[INNER]).all()
        labels = scene.labels[INNER]
        wanted = np.where(labels == 0, VOID, nyu.mapping()[labels.astype(int) - 1] - 1)
        assert (sample.target == wanted).all()


def test_mat_depth(mat: Path) -> None:
    image = open_dataset("nyudv2_rgbd", mat, "test")[0].image
    scene = nyu.scenes()[1]
    assert (image[..., :3] == scene.image[INNER]).all()
    assert np.allclose(image[..., 3], np.log(1000 * scene.depth[INNER]))


def test_mat_with_the_authors_lists(tmp_path: Path) -> None:
    nyu.labeled_mat(tmp_path, train=[4, 1], test=[2])
    miniatures.save_list(tmp_path / "val.txt", ["5003"])
    data = open_dataset("nyudv2", tmp_path, "val")
    assert (data[0].image == nyu.scenes()[2].image[INNER]).all()
    with pytest.raises(DatasetError, match="'train\\+val': the splits of nyudv2 cannot be joined"):
        open_dataset("nyudv2", tmp_path, "train+val")
    miniatures.save_list(tmp_path / "val.txt", ["kitchen"])
    with pytest.raises(DatasetError, match=r"val\.txt: want the authors' numbers, as 5003"):
        open_dataset("nyudv2", tmp_path, "val")
    miniatures.save_list(tmp_path / "val.txt", ["5009"])
    with pytest.raises(DatasetError, match="has 4 images, but a split names number 9"):
        open_dataset("nyudv2", tmp_path, "val")[0]


def test_mat_has_no_hha(tmp_path: Path) -> None:
    nyu.labeled_mat(tmp_path, train=[4, 1], test=[2])
    with pytest.raises(DatasetError, match=r"HHA are missing.*img_5002\.png.*rcnn-depth computes"):
        open_dataset("nyudv2_rgb_hha", tmp_path, "test")
    hha = np.full((425, 560, 3), 9, np.uint8)
    nyu.save(tmp_path / "data/hha/img_5002.png", hha)
    both = open_dataset("nyudv2_rgb_hha", tmp_path, "test")[0].image
    assert both.shape == (425, 560, 6)
    assert (open_dataset("nyudv2_hha", tmp_path, "test")[0].image == hha).all()


@pytest.mark.parametrize("damage", ["text", "cut", "other", "sides"])
def test_damaged_mat(tmp_path: Path, damage: str) -> None:
    nyu.labeled_mat(tmp_path, train=[4, 1], test=[2])
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    if damage in ("text", "cut"):
        path.write_bytes(b"hello" if damage == "text" else path.read_bytes()[:2000])
    else:
        with h5py.File(path, "r+") as file:
            del file["images"]
            if damage == "sides":
                file["images"] = np.zeros((4, 480, 640, 3), np.uint8)
    wanted = "images is 4x480x640x3: want Nx3x640x480" if damage == "sides" else "cannot read"
    with pytest.raises(DatasetError, match=rf"nyu_depth_v2_labeled\.mat.*{wanted}|{wanted}"):
        open_dataset("nyudv2", tmp_path, "test")[0]


@pytest.mark.parametrize("name", ["classMapping40.mat", "splits.mat"])
def test_mat_without_a_neighbour(tmp_path: Path, name: str) -> None:
    nyu.labeled_mat(tmp_path, train=[1], test=[2])
    (tmp_path / name).unlink()
    with pytest.raises(DatasetError, match=rf"cannot read .*{name}"):
        open_dataset("nyudv2", tmp_path, "test")


def test_vectors(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    miniatures.save_mat(
        path, row=np.arange(3)[None], column=np.arange(3.0)[:, None], one=7, m=np.eye(2)
    )
    assert read_vector(path, "row").tolist() == read_vector(path, "column").tolist() == [0, 1, 2]
    assert read_vector(path, "one").tolist() == [7]
    with pytest.raises(DatasetError, match="m is no row or column of numbers"):
        read_vector(path, "m")


@pytest.mark.parametrize("name", ["nyudv2", "nyudv2_rgbd", "nyudv2_hha", "nyudv2_rgb_hha"])
def test_data_check(folders: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["data", "check", name, str(folders), "--read-all"]) == 0
    assert "trainval  usable, 2 read; 2 images of 795" in capsys.readouterr().out
