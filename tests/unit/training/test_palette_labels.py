"""A label's number is not its colour: what is read as a class id, and what is refused."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.drawing import png_chunk, png_of
from training.datasets import DatasetError, open_dataset
from training.datasets.base import VOID, read_label_png

GROUND, ROOF, TREE = (70, 130, 180), (200, 0, 0), (0, 90, 0)
BLACK, WHITE, CREAM = (0, 0, 0), (255, 255, 255), (224, 224, 192)
VOC = [BLACK, (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128)]
CAR, PERSON = (128, 128, 128), (192, 128, 128)

Colors = Sequence[tuple[int, int, int]]


def palette_png(numbers: Any, colors: Colors) -> bytes:
    """Number by number as given, with exactly these colours: as an optimiser writes them."""
    palette = bytes(value for color in colors for value in color)
    return png_of(np.asarray(numbers, np.uint8)[..., None], 8, 3, [(b"PLTE", palette)])


def optimised(image: Image.Image) -> bytes:
    """A palette PNG of the same pixels with the colours in order of their first use, reversed."""
    rgb = np.array(image.convert("RGB")).reshape(-1, 3)
    colors, numbers = np.unique(rgb, axis=0, return_inverse=True)
    count = len(colors)
    flipped = (count - 1 - numbers).reshape(image.height, image.width)
    return palette_png(flipped, [tuple(color) for color in colors[::-1].tolist()])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder data set of three coloured classes, ground, roof and tree, with one image."""
    colors = {"ground": GROUND, "roof": ROOF, "tree": TREE}
    classes = [{"name": name, "color": list(color)} for name, color in colors.items()]
    listed = {"name": "x", "licence": "CC0", "classes": classes}
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump(listed))
    for kind in ("images", "labels"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    Image.new("RGB", (4, 2)).save(tmp_path / "train/images/a.png")
    return tmp_path


def target(root: Path, body: bytes, dataset: str = "folder") -> list[Any]:
    (root / "train/labels/a.png").write_bytes(body)
    found: list[Any] = open_dataset(dataset, root, "train")[0].target.tolist()
    return found


IDS = [[0, 0, 2, 2], [1, 1, 2, 2]]


@pytest.mark.parametrize(
    "colors",
    [
        [GROUND, ROOF, TREE],  # the class list's own, in its order
        [(0, 0, 0), (1, 1, 1), (2, 2, 2)],  # a grey image whose numbers were kept
        [(i, i, i) for i in range(256)],
        [(9, 1, 1), (8, 2, 2), (7, 3, 3)],  # decoration
        [BLACK, *VOC[1:]],  # VOC's colours are no class's here
        [(0, 0, 0), (128, 128, 128), (60, 1, 2)],
        [*VOC, *([BLACK] * 249)],
    ],
)
def test_numbers_that_are_class_ids(root: Path, colors: Colors) -> None:
    assert target(root, palette_png(IDS, colors)) == IDS


@pytest.mark.parametrize(
    ("colors", "complaint"),
    [
        ([(0, 0, 0), (2, 2, 2), (1, 1, 1)], r"number 1 is shown as \(2, 2, 2\), which means 2"),
        ([(2, 2, 2), (1, 1, 1), (0, 0, 0)], r"number 0 is shown as \(2, 2, 2\), which means 2"),
        ([BLACK, WHITE, (128, 128, 128)], r"number 1 .*which means 255, void"),
        ([BLACK, (85, 85, 85), (170, 170, 170)], "number 1 .*which means 85"),
        ([(255 - i, 255 - i, 255 - i) for i in range(256)], "number 0 .*which means 255, void"),
        ([ROOF, GROUND, TREE], "number 0 .*which means 1, class 'roof'"),
        ([GROUND, TREE, BLACK], "number 1 .*which means 2, class 'tree'"),
        ([GROUND, ROOF, BLACK], "number 2 .*which means 255, void"),
        ([(5, 6, 7), GROUND, (8, 9, 9)], "number 1 .*which means 0, class 'ground'"),
        ([BLACK, CREAM, (3, 4, 5)], "number 1 .*which means 255, void"),
    ],
)
def test_numbers_that_contradict_their_colours(root: Path, colors: Colors, complaint: str) -> None:
    with pytest.raises(DatasetError, match=rf"a\.png is a palette PNG: its {complaint}.*greyscale"):
        target(root, palette_png(IDS, colors))


@pytest.mark.parametrize("kind", ["grey", "colours"])
def test_whatever_an_optimiser_renumbers(root: Path, kind: str) -> None:
    """Refused, or read as before: never as something else."""
    for ids in (IDS, [[0, 0]], [[2, 2]], [[1, 0]], [[0, 2]], [[1, 2]], [[0, 1, 2, VOID]]):
        labels = np.array(ids, np.uint8)
        Image.new("RGB", labels.shape[::-1]).save(root / "train/images/a.png")
        image = Image.fromarray(labels)
        if kind == "colours":
            table = np.zeros((256, 3), np.uint8)
            table[:3] = GROUND, ROOF, TREE
            image = Image.fromarray(table[labels])
        plain = io.BytesIO()
        image.save(plain, "PNG")
        assert target(root, plain.getvalue()) == ids
        try:
            assert target(root, optimised(image)) == ids
        except DatasetError as error:
            assert error.kind == "label"


def test_a_number_beyond_the_palette_stays_a_number(root: Path) -> None:
    assert target(root, palette_png([[0, 1, 2, VOID]] * 2, [GROUND, ROOF, TREE]))[0][3] == VOID


@pytest.mark.parametrize(
    ("numbers", "colors", "fine"),
    [
        ([[0, 6]], VOC, True),
        ([[0, 1]], [BLACK, PERSON], False),
        ([[0, 1]], [BLACK, CAR], False),
        ([[0, 1]], [BLACK, CREAM], False),
        ([[0, 1]], [BLACK, VOC[1]], True),
    ],
)
def test_vocs_palette(tmp_path: Path, numbers: Any, colors: Colors, fine: bool) -> None:
    voc = tmp_path / "VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    (voc / "ImageSets/Segmentation/train.txt").write_text("a\n")
    Image.new("RGB", (2, 1)).save(voc / "JPEGImages/a.jpg")
    (voc / "SegmentationClass/a.png").write_bytes(palette_png(numbers, colors))
    data = open_dataset("voc2012", tmp_path, "train")
    if fine:
        assert data[0].target.tolist() == numbers
    else:
        with pytest.raises(DatasetError, match="number 1 is shown as"):
            data[0]


@pytest.mark.parametrize("highest", [2, VOID])
def test_16_bits_hold_the_same_numbers(tmp_path: Path, highest: int) -> None:
    labels = np.array([[0, 1, highest]], np.uint16)
    Image.fromarray(labels).save(tmp_path / "a.png")
    assert read_label_png(tmp_path / "a.png").tolist() == labels.tolist()


def test_16_bits_with_more_than_class_ids(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png holds the label 65535 in 16 bits"):
        read_label_png(tmp_path / "a.png")


def test_1_bit(tmp_path: Path) -> None:
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "a.png")
    assert read_label_png(tmp_path / "a.png").tolist() == [[0, 1]]


@pytest.mark.parametrize("mode", ["LA", "PA", "CMYK", "RGBX", "F"])
def test_other_kinds_of_pixels(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (2, 1)).save(tmp_path / "a.png", "PNG" if mode == "LA" else "TIFF")
    with pytest.raises(DatasetError, match=r"a\.png is a .* image: labels must be 8-bit greyscale"):
        read_label_png(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["JPEG", "WEBP"])
def test_a_lossy_file_called_png(tmp_path: Path, name: str) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png", name)
    with pytest.raises(DatasetError, match=r"a\.png is (no PNG: JPEG and WebP|a RGB image)"):
        read_label_png(tmp_path / "a.png")


def test_grey_in_three_channels(root: Path) -> None:
    """The numbers of a greyscale mask, saved as RGB: no colours of classes."""
    labels = np.repeat(np.array(IDS, np.uint8)[..., None], 3, axis=2)
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG")
    with pytest.raises(DatasetError, match="It is grey throughout: .*save it as greyscale"):
        target(root, buffer.getvalue())


@pytest.mark.parametrize("place", ["before", "behind"])
@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_text_that_pillow_cannot_unpack_does_not_decide(root: Path, place: str, mode: str) -> None:
    text = b"comment\0\0" + zlib.compress(b"a" * 2_000_000)
    chunk = png_chunk(b"zTXt", text)
    image = Image.fromarray(np.array(IDS, np.uint8))
    if mode == "P":
        image.putpalette([*GROUND, *ROOF, *TREE])
    if mode == "RGB":
        image = Image.fromarray(np.array([GROUND, ROOF, TREE], np.uint8)[np.array(IDS)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    body = buffer.getvalue()
    at = 33 if place == "before" else len(body) - 12
    assert target(root, body[:at] + chunk + body[at:]) == IDS
