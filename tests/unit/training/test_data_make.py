"""`fcn data make`: what people have becomes a folder data set, and what cannot is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cli.main import main
from tests.drawing import street
from training.datasets import open_dataset
from training.datasets.base import VOID
from training.datasets.make.sources import voc_color
from training.datasets.make.splits import by_rules

Capture = pytest.CaptureFixture[str]
HEIGHT, WIDTH = 24, 32


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five photos, a0 to a2 and b3, b4."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(5):
        name = f"{'a' if index < 3 else 'b'}{index}.png"
        Image.fromarray(street(HEIGHT, WIDTH, seed=index)).save(folder / name)
    return folder


def save_masks(images: Path, mask: np.ndarray[Any, Any]) -> Path:
    folder = images.parent / "masks"
    folder.mkdir()
    for image in images.iterdir():
        Image.fromarray(mask).save(folder / f"{image.stem}.png")
    return folder


def half(value: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, WIDTH // 2 :] = value
    return mask


def make(images: Path, *words: object, capsys: Capture, code: int = 0) -> dict[str, Any]:
    """Run the command into `out`; its JSON, or its error under `error`."""
    out = images.parent / "out"
    assert main(["data", "make", str(out), "--json", *map(str, words)]) == code
    said = capsys.readouterr()
    if code:
        assert said.err.startswith("fcn: ")
        return {"error": said.err}
    report: dict[str, Any] = json.loads(said.out)
    return report


@pytest.mark.parametrize("value", [1, 255])
def test_binary_masks(images: Path, value: int, capsys: Capture) -> None:
    masks = save_masks(images, half(value))
    report = make(images, "--images", images, "--masks", masks, "--binary", "flood", capsys=capsys)
    assert report["images"] == {"train": 4, "val": 1} and report["dropped"] == {}
    data = open_dataset("folder", images.parent / "out", "train")
    assert [info.name for info in data.info.classes] == ["background", "flood"]
    assert (data[0].target == half(1)).all()
    assert report["pixels"] == {"background": 1920, "flood": 1920, "void": 0}
    assert main(["data", "check", "folder", str(images.parent / "out"), "--read-all"]) == 0


def test_a_binary_mask_of_jpeg(images: Path, capsys: Capture) -> None:
    masks = images.parent / "masks"
    masks.mkdir()
    for image in images.iterdir():
        Image.fromarray(half(255)).save(masks / f"{image.stem}.jpg", quality=50)
    make(images, "--images", images, "--masks", masks, "--binary", "flood", capsys=capsys)
    target = open_dataset("folder", images.parent / "out", "train")[0].target
    assert (target == half(1)).mean() > 0.95


def test_coloured_masks(images: Path, tmp_path: Path, capsys: Capture) -> None:
    classes = [{"name": "sky", "color": [0, 0, 9]}, {"name": "road", "color": [9, 0, 0]}]
    listed = tmp_path / "list.yaml"
    listed.write_text(yaml.safe_dump({"name": "x", "licence": "x", "classes": classes}))
    colors = np.array([[0, 0, 9], [9, 0, 0], [0, 0, 0]], np.uint8)
    label = half(1)
    label[0] = 2
    masks = save_masks(images, colors[label])
    make(images, "--images", images, "--masks", masks, "--classes", listed, capsys=capsys)
    wanted = half(1)
    wanted[0] = VOID
    assert (open_dataset("folder", tmp_path / "out", "val")[0].target == wanted).all()


def test_what_is_dropped_is_named(images: Path, capsys: Capture) -> None:
    masks = save_masks(images, half(255))
    (masks / "a0.png").unlink()
    Image.fromarray(half(255)[:, :20]).save(masks / "a1.png")
    Image.fromarray(np.repeat(np.repeat(half(255), 2, 0), 2, 1)).save(masks / "a2.png")
    (images / "b3.png").write_bytes(b"junk")
    Image.fromarray(half(255)).save(masks / "c9.png")
    report = make(
        images, "--images", images, "--masks", masks, "--binary", "flood", "--val", "b4",
        capsys=capsys,
    )  # fmt: skip
    assert report["dropped"] == {
        "no mask": ["a0.png"],
        "no image": ["c9.png"],
        "aspect ratio": ["a1.png"],
        "image": ["b3.png"],
    }
    assert report["masks_resized"] == ["a2.png"]
    assert report["images"] == {"train": 1, "val": 1}


def coco(images: Path, **changes: Any) -> Path:
    """A square of `car`, upon it a smaller `person`; in b3 a crowd and run lengths."""
    names = sorted(path.name for path in images.iterdir())
    counts = [0, HEIGHT * 2, HEIGHT * (WIDTH - 2)]
    square, small = [4, 4, 20, 4, 20, 20, 4, 20], [8, 8, 12, 8, 12, 12, 8, 12]
    annotations = [
        {"image_id": 0, "category_id": 7, "segmentation": [small]},
        {"image_id": 0, "category_id": 3, "segmentation": [square]},
        {
            "image_id": 3,
            "category_id": 7,
            "iscrowd": 1,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts},
        },
    ]
    raw = {
        "images": [{"id": at, "file_name": name} for at, name in enumerate(names)],
        "categories": [{"id": 7, "name": "person"}, {"id": 3, "name": "car"}],
        "annotations": annotations,
    } | changes
    path = images.parent / "coco.json"
    path.write_text(json.dumps(raw))
    return path


def test_coco(images: Path, capsys: Capture) -> None:
    make(images, "--images", images, "--coco", coco(images), "--val", "a1", capsys=capsys)
    data = open_dataset("folder", images.parent / "out", "train")
    assert [info.name for info in data.info.classes] == ["background", "car", "person"]
    wanted = np.zeros((HEIGHT, WIDTH), np.uint8)
    wanted[4:20, 4:20], wanted[8:12, 8:12] = 1, 2
    assert (data[0].target == wanted).all()
    assert data[0].target[10, 10] == 2 and data[0].target[15, 15] == 1
    crowd = next(n for n, (image, _) in enumerate(data.pairs) if image.stem == "b3")
    assert (data[crowd].target[:, :2] == VOID).all() and not data[crowd].target[:, 2:].any()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": "abc"}, "compressed"),
        ({"size": [1, 1], "counts": [1]}, "another size"),
        ([[1, 1, 2, 2]], "fewer than three points"),
        ([[1, 1, 2]], "cannot be read"),
    ],
)
def test_coco_objects_that_cannot_be_read(
    images: Path, segmentation: Any, reason: str, capsys: Capture
) -> None:
    bad = [{"image_id": 0, "category_id": 7, "segmentation": segmentation}]
    file = coco(images, annotations=bad)
    report = make(images, "--images", images, "--coco", file, "--val", "a1", capsys=capsys)
    assert [names for why, names in report["dropped"].items() if reason in why] == [["a0.png"]]


def yolo(images: Path, text: str, names: object = ("car", "person")) -> list[object]:
    labels = images.parent / "labels"
    labels.mkdir()
    (labels / "a0.txt").write_text(text)
    (images.parent / "data.yaml").write_text(yaml.safe_dump({"names": names}))
    return ["--images", images, "--yolo", labels, "--names", images.parent / "data.yaml"]


@pytest.mark.parametrize("names", [["car", "person"], {0: "car", 1: "person"}])
def test_yolo(images: Path, names: object, capsys: Capture) -> None:
    words = yolo(images, "1 0.5 0 1 0 1 1 0.5 1\n\n", names)
    make(images, *words, "--val", "b*", capsys=capsys)
    data = open_dataset("folder", images.parent / "out", "train")
    assert (data[0].target != 2 * half(1)).mean() < 0.05
    assert not data[1].target.any()  # without a file there is nothing but background


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.1 0.1", "boxes, not polygons"),
        ("2 0 0 1 0 1 1", "a class below 2"),
        ("0 0 0 1 0 1 1 1", "pairs of x and y"),
        ("0 x", "could not convert"),
    ],
)
def test_yolo_lines_that_are_no_polygons(
    images: Path, line: str, reason: str, capsys: Capture
) -> None:
    report = make(images, *yolo(images, line), "--val", "b*", capsys=capsys)
    assert [names for why, names in report["dropped"].items() if reason in why] == [["a0.png"]]


def test_voc_and_flat_lists(images: Path, tmp_path: Path, capsys: Capture) -> None:
    """Lines name image and mask; who is in no list is dropped."""
    images.rename(tmp_path / "JPEGImages")
    masks = tmp_path / "SegmentationClassAug"
    masks.mkdir()
    for name in ("a0", "a1", "b3"):
        Image.fromarray(half(15)).save(masks / f"{name}.png")
    (tmp_path / "train.txt").write_text(
        "/JPEGImages/a0.jpg /SegmentationClassAug/a0.png\na1\n".replace(".jpg", ".png")
    )
    (tmp_path / "val.txt").write_text("b3\n")
    lists = ["--lists", tmp_path / "train.txt", tmp_path / "val.txt"]
    words = ["--voc", tmp_path, "--voc-masks", "SegmentationClassAug", *lists]
    report = make(tmp_path / "JPEGImages", *words, capsys=capsys)
    assert report["images"] == {"train": 2, "val": 1}
    assert report["dropped"] == {"no mask": ["a2.png", "b4.png"]}
    assert report["pixels"]["person"] == 3 * HEIGHT * WIDTH // 2


def test_large_images_are_scaled_down(images: Path, capsys: Capture) -> None:
    masks = save_masks(images, half(255))
    words = ["--images", images, "--masks", masks, "--binary", "flood", "--longest-side", 16]
    make(images, *words, capsys=capsys)
    image, target = open_dataset("folder", images.parent / "out", "train")[0]
    assert image.shape == (12, 16, 3) and target.shape == (12, 16)
    assert not target[:, :8].any() and target[:, 8:].all()


def test_random_shares_depend_on_the_seed_alone() -> None:
    stems = [str(n) for n in range(100)]
    first = by_rules(stems, {"test": "0.1", "val": "0.2"}, seed=1)
    assert sorted(first.values()).count("val") == 20 and list(first.values()).count("test") == 10
    assert by_rules(stems, {"test": "0.1", "val": "0.2"}, seed=1) == first
    assert by_rules(stems, {"test": "0.1", "val": "0.2"}, seed=2) != first


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--images", "{i}", "--masks", "{m}"], "masks need --classes FILE"),
        (["--masks", "{m}", "--binary", "x"], "say where the images are: --images DIR"),
        (["--images", "{i}", "--masks", "{i}/no", "--binary", "x"], "no holds no mask"),
        (["--images", "{m}/no", "--masks", "{m}", "--binary", "x"], "no holds no image"),
        (["--images", "{i}", "--yolo", "{i}"], "--names data.yaml"),
        (["--images", "{i}", "--coco", "{i}/a0.png"], "cannot read"),
        (["--images", "{i}", "--masks", "{m}", "--binary", "x", "--val", "7"], "7: want a share"),
        (["--images", "{i}", "--masks", "{m}", "--binary", "x", "--val", "q*"], "no image has"),
        (["--images", "{i}", "--masks", "{m}", "--binary", "x", "--val", "*"], "none is for train"),
    ],
)
def test_what_cannot_be_made(
    images: Path, words: list[str], complaint: str, capsys: Capture
) -> None:
    masks = save_masks(images, half(255))
    filled = [word.format(i=images, m=masks) for word in words]
    said = make(images, *filled, capsys=capsys, code=1)
    assert complaint in said["error"] and said["error"].count("\n") == 1
    assert not (images.parent / "out").exists()


def test_a_folder_that_holds_something_stays(images: Path, capsys: Capture) -> None:
    masks = save_masks(images, half(255))
    (images.parent / "out").mkdir()
    (images.parent / "out/mine.txt").write_text("mine")
    words = ["--images", images, "--masks", masks, "--binary", "x"]
    said = make(images, *words, capsys=capsys, code=1)
    assert "out is there already: choose another folder" in said["error"]


def test_colours_are_vocs() -> None:
    assert [voc_color(n) for n in (0, 1, 8, 15)] == [
        (0, 0, 0),
        (128, 0, 0),
        (64, 0, 0),
        (192, 128, 128),
    ]
