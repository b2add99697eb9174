"""The folder format: what is read, and what is refused with which words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.drawing import png_of
from training.datasets import DatasetError, SegmentationDataset, open_dataset
from training.datasets.base import VOID
from training.datasets.folder import load_info

CLASSES = {
    "name": "tiny",
    "licence": "CC0-1.0",
    "classes": [
        {"name": "sky", "color": [1, 2, 3]},
        {"name": "road", "color": [4, 5, 6], "description": "asphalt"},
    ],
}
RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
LABELS = np.array([[0, 1, VOID, 0, 1, 0]] * 4, np.uint8)
LABEL = "train/labels/a.png"

Damage = Callable[[Path], None]
"""Makes the data set wrong."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One scene of 4x6 in split `train`."""
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(CLASSES))
    for kind in ("images", "labels"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    Image.fromarray(RGB).save(tmp_path / "train/images/a.png")
    Image.fromarray(LABELS).save(tmp_path / "train/labels/a.png")
    return tmp_path


def opened(root: Path) -> SegmentationDataset:
    return open_dataset("folder", root, "train")


def test_read(root: Path) -> None:
    data = opened(root)
    assert len(data) == 1
    assert [info.name for info in data.info.classes] == ["sky", "road"]
    assert data.info.classes[1].description == "asphalt"
    assert data.info.data.licence == "CC0-1.0"
    image, target = data[0]
    assert (image == RGB).all()
    assert (target == LABELS).all()


def test_splits_are_joined_by_a_plus(root: Path) -> None:
    shutil.copytree(root / "train", root / "val")
    parts = [open_dataset("folder", root, split) for split in ("train", "val")]
    joined = open_dataset("folder", root, "train+val")
    assert joined.pairs == [pair for part in parts for pair in part.pairs] and len(joined) == 2
    with pytest.raises(DatasetError, match="nope"):
        open_dataset("folder", root, "train+nope")


def test_class_frequencies_leave_void_out(root: Path) -> None:
    assert opened(root).class_frequencies() == pytest.approx([3 / 5, 2 / 5])


def test_no_labelled_pixel_at_all(root: Path) -> None:
    Image.fromarray(np.full((4, 6), VOID, np.uint8)).save(root / "train/labels/a.png")
    with pytest.raises(DatasetError, match="'train' has no labelled pixel"):
        opened(root).class_frequencies()


def test_other_files_are_passed_over(root: Path) -> None:
    (root / "train/images/notes.txt").write_text("not an image")
    (root / "train/images/Thumbs.db").write_bytes(b"")
    assert len(opened(root)) == 1


def test_order_is_by_name_and_suffixes_may_be_upper_case(root: Path) -> None:
    for name in ("c.JPG", "b.webp"):
        Image.fromarray(RGB).save(root / "train/images" / name)
        Image.fromarray(LABELS).save(root / "train/labels" / (name[0] + ".png"))
    assert [image.name for image, _ in opened(root).pairs] == ["a.png", "b.webp", "c.JPG"]


def test_palette_labels_are_read_as_ids(root: Path) -> None:
    image = Image.fromarray(LABELS, "L")
    image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(root / "train/labels/a.png")
    assert (opened(root)[0].target == LABELS).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_greyscale_labels_of_few_bits_are_read_as_ids(root: Path, bits: int) -> None:
    """Tools that save as small as they can write these; Pillow scales their values to 255."""
    labels = np.where(LABELS == VOID, 0, LABELS)
    (root / "train/labels/a.png").write_bytes(png_of(labels[..., None], bits, 0))
    assert (opened(root)[0].target == labels).all()


def test_images_are_read_upright_as_the_server_reads_them(root: Path) -> None:
    (root / "train/images/a.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    grey = np.repeat(np.linspace(0, 255, 24).astype(np.uint8).reshape(6, 4)[..., None], 3, 2)
    Image.fromarray(grey).save(root / "train/images/a.jpg", quality=100, exif=exif)
    image = opened(root)[0].image
    assert image.shape == (4, 6, 3)
    assert np.abs(image.astype(int) - np.rot90(grey, -1)).max() < 8


def test_of_16_bits_the_high_8_count(root: Path) -> None:
    deep = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    Image.fromarray(deep).save(root / "train/images/a.png")
    image = opened(root)[0].image
    assert (image == ((deep.astype(int) + 128) // 257)[..., None]).all()


def test_alpha_is_dropped(root: Path) -> None:
    rgba = np.dstack([RGB, np.zeros((4, 6), np.uint8)])
    Image.fromarray(rgba).save(root / "train/images/a.png")
    assert (opened(root)[0].image == RGB).all()


@pytest.mark.parametrize(
    ("name", "split", "complaint"),
    [
        ("coco", "train", "unknown data set 'coco': want one of .*folder"),
        ("folder", "val", r"val/images is missing: want .*/labels"),
    ],
)
def test_unknown_data_set_and_split(root: Path, name: str, split: str, complaint: str) -> None:
    with pytest.raises(DatasetError, match=complaint):
        open_dataset(name, root, split)


def without(path: str) -> Damage:
    return lambda root: (root / path).unlink()


def with_label(labels: Any, **options: Any) -> Damage:
    return lambda root: Image.fromarray(labels).save(root / LABEL, **options)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (without(LABEL), r"a\.png has no label: .*labels/a\.png is missing"),
        (without("train/images/a.png"), "holds no image"),
        (without("classes.yaml"), r"cannot read the class list .*classes\.yaml"),
        (
            lambda root: Image.fromarray(RGB).save(root / "train/images/a.bmp"),
            r"a\.bmp and .*a\.png share one label",
        ),
        (with_label(LABELS[:, :5]), r"a\.png is 4x6 but its label .* is 4x5"),
        (with_label(np.full((4, 6), 2, np.uint8)), r"holds the label 2: want 0\.\.1, or 255"),
        (
            lambda root: Image.fromarray(LABELS).convert("CMYK").save(root / LABEL, "TIFF"),
            "is a CMYK image: labels must be 8-bit",
        ),
    ],
)
def test_what_cannot_be_read(root: Path, damage: Damage, complaint: str) -> None:
    damage(root)
    with pytest.raises(DatasetError, match=complaint):
        opened(root)[0]


def coloured(labels: Any, *, alpha: bool = False) -> Any:
    colors = np.zeros((256, 3), np.uint8)
    colors[:2] = [entry["color"] for entry in CLASSES["classes"]]  # type: ignore[index]
    rgb = colors[labels]
    return np.dstack([rgb, np.full(labels.shape, 255, np.uint8)]) if alpha else rgb


@pytest.mark.parametrize("alpha", [False, True])
def test_coloured_labels_are_read_by_the_class_lists_colours(root: Path, alpha: bool) -> None:
    """Void is black."""
    Image.fromarray(coloured(LABELS, alpha=alpha)).save(root / "train/labels/a.png")
    assert (opened(root)[0].target == LABELS).all()


def test_a_black_class_is_not_void(root: Path) -> None:
    classes = [{"name": "night", "color": [0, 0, 0]}, {"name": "road", "color": [4, 5, 6]}]
    (root / "classes.yaml").write_text(yaml.safe_dump(CLASSES | {"classes": classes}))
    rgb: Any = np.zeros((4, 6, 3), np.uint8)
    rgb[:, 3:] = (4, 5, 6)
    Image.fromarray(rgb).save(root / "train/labels/a.png")
    assert (opened(root)[0].target == [[0, 0, 0, 1, 1, 1]] * 4).all()


def test_a_colour_without_a_class(root: Path) -> None:
    rgb = coloured(LABELS)
    rgb[2, 3] = (4, 5, 7)
    Image.fromarray(rgb).save(root / LABEL)
    complaint = r"a\.png has the colour \(4, 5, 7\) at row 2, column 3, which no class"
    with pytest.raises(DatasetError, match=complaint):
        opened(root)[0]


def test_a_coloured_label_and_two_classes_of_one_colour(root: Path) -> None:
    classes = [{"name": name, "color": [1, 2, 3]} for name in ("sky", "sea")]
    (root / "classes.yaml").write_text(yaml.safe_dump(CLASSES | {"classes": classes}))
    Image.fromarray(coloured(LABELS)).save(root / LABEL)
    with pytest.raises(DatasetError, match="'sky' and 'sea' have the same colour"):
        opened(root)[0]


def test_a_damaged_coloured_label(root: Path) -> None:
    path = root / "train/labels/a.png"
    Image.fromarray(coloured(LABELS)).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DatasetError, match=r"cannot read the label .*a\.png"):
        opened(root)[0]


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_damaged_files(root: Path, kind: str, damage: str) -> None:
    path = root / f"train/{kind}s/a.png"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello", "cut": content[:-30]}[damage])
    with pytest.raises(DatasetError, match=rf"cannot read the {kind} .*a\.png"):
        opened(root)[0]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"classes": []}, "classes: .*at least 1"),
        ({"classes": None}, "classes: "),
        ({"classes": [{"name": "sky"}]}, r"classes\.0\.color: Field required"),
        ({"classes": [{"color": [1, 2, 3]}]}, r"classes\.0\.name: Field required"),
        ({"classes": [{"name": "sky", "color": [1, 2]}]}, r"classes\.0\.color"),
        ({"classes": [{"name": "sky", "color": [1, 2, 256]}]}, r"classes\.0\.color\.2"),
        ({"classes": [{"name": "sky", "color": "blue"}]}, r"classes\.0\.color"),
        ({"classes": [{"name": "a", "color": [0, 0, 0], "id": 1}]}, r"classes\.0\.id"),
        ({"classes": 2 * [{"name": "sky", "color": [1, 2, 3]}]}, "two classes are called 'sky'"),
        ({"licence": None}, "licence: "),
        ({"license": "MIT"}, "license: "),
        (
            {"classes": [{"name": f"c{n}", "color": [0, 0, 0]} for n in range(256)]},
            "classes: .*at most 255",
        ),
    ],
)
def test_wrong_class_lists(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "classes.yaml"
    path.write_text(yaml.safe_dump(CLASSES | change))
    with pytest.raises(DatasetError, match=rf"classes\.yaml: .*{complaint}"):
        load_info(path)


@pytest.mark.parametrize(
    "content", [b"", b"- sky\n", b"classes: [", b"\xff\xfe", b"name: 2024-13-01", b"[" * 5000]
)
def test_unreadable_class_lists(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "classes.yaml"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"classes\.yaml"):
        load_info(path)


def test_own_class_list_instead(root: Path) -> None:
    path = root / "other.yaml"
    path.write_text(yaml.safe_dump(CLASSES | {"name": "renamed"}))
    assert open_dataset("folder", root, "train", path).info.data.name == "renamed"


def test_camvid_has_its_11_classes(root: Path) -> None:
    """They are in the order of the SegNet labels, which the shipped model's ids follow."""
    info = open_dataset("camvid", root, "train").info
    assert " ".join(entry.name for entry in info.classes) == (
        "sky building pole road pavement tree sign_symbol fence car pedestrian bicyclist"
    )
    assert [entry.id for entry in info.classes] == list(range(11))
    assert len({entry.color for entry in info.classes}) == 11
    assert "non-commercial" in info.data.licence
