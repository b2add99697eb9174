"""Reads annotations as people have them: masks by colour, by number or of 0 and 255, polygons of
COCO and YOLO, VOC's folders. Each image gives its label when asked for it, so that one that cannot
be used costs no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from model.contract import ClassInfo
from training.datasets.base import VOID, DatasetError, UInt8Array, unreadable
from training.datasets.colors import ColorLabels
from training.datasets.files import IMAGE_ENDINGS, list_files
from training.datasets.folder import load_info

BACKGROUND = "background"

Size = tuple[int, int]
"""(height, width) in pixels."""

ReadLabel = Callable[[Size], UInt8Array]
"""The upright image's size -> uint8 [H,W], perhaps of another size. Raises DatasetError."""

_VOC_CLASSES = Path(__file__).parents[1] / "voc2012.yaml"


@dataclass(frozen=True, slots=True)
class Source:
    """Holds the images that have a label, and those files that were left out, with the reason."""

    classes: tuple[ClassInfo, ...]
    items: list[tuple[Path, ReadLabel]]
    dropped: dict[str, list[str]] = field(default_factory=dict)
    """Names of files by what is wrong with them."""


def voc_color(index: int) -> tuple[int, int, int]:
    """Give the colour of a number in VOC's palette. Source: `VOClabelcolormap.m` of the devkit."""
    color = [0, 0, 0]
    for bit in range(7, -1, -1):
        for channel in range(3):
            color[channel] |= (index >> channel & 1) << bit
        index >>= 3
    red, green, blue = color
    return red, green, blue


def named(names: Iterable[str]) -> tuple[ClassInfo, ...]:
    """Give names the ids 0, 1, ... and VOC's colours."""
    return tuple(ClassInfo(index, name, voc_color(index)) for index, name in enumerate(names))


def from_masks(images: Path, masks: Path, classes: Path | None, binary: str | None) -> Source:
    """Pair images with masks of the same stem.

    `binary`: the class that 255 (or 1) stands for, beside the background. Else masks hold the
    colours of the class list `classes`, or its ids. Raises: DatasetError.
    """
    reader: Callable[[Path], UInt8Array]
    if binary is not None and classes is None:
        listed, reader = named([BACKGROUND, binary]), _binary
    elif classes is not None and binary is None:
        listed = load_info(classes).classes
        reader = ColorLabels(listed)
    else:
        raise DatasetError(
            "masks need --classes FILE, a class list with their colours or ids, or --binary NAME "
            "for masks of 0 and 255"
        )
    found = {path.stem: path for path in list_files(masks, IMAGE_ENDINGS)}
    if not found:
        raise DatasetError(f"{masks} holds no mask ({', '.join(sorted(IMAGE_ENDINGS))})")
    items: list[tuple[Path, ReadLabel]] = []
    without = []
    for image in _images(images):
        mask = found.pop(image.stem, None)
        if mask is None:
            without.append(image.name)
        else:
            items.append((image, partial(_whole, reader, mask)))
    return Source(
        listed, items, {"no mask": without, "no image": [path.name for path in found.values()]}
    )


def _whole(reader: Callable[[Path], UInt8Array], mask: Path, _size: Size) -> UInt8Array:
    return reader(mask)


def from_voc(root: Path, folder: str, classes: Path | None) -> Source:
    """Read JPEGImages and a folder of masks, `SegmentationClass` or `SegmentationClassAug` say."""
    return from_masks(root / "JPEGImages", root / folder, classes or _VOC_CLASSES, None)


def from_coco(images: Path, file: Path) -> Source:
    """Read polygons, and run lengths as plain lists, of a COCO annotation file.

    Class 0 is the background, the categories follow by their ids. Small objects lie upon large
    ones; a crowd is void. Raises: DatasetError.
    """
    raw = _parsed(file, json.loads)
    try:
        categories = sorted(raw["categories"], key=lambda category: category["id"])
        ids = {category["id"]: at for at, category in enumerate(categories, start=1)}
        objects: dict[Any, list[Mapping[str, Any]]] = {}
        for annotation in raw["annotations"]:
            objects.setdefault(annotation["image_id"], []).append(annotation)
        names = [str(category["name"]) for category in categories]
        listed = [(entry["file_name"], entry["id"]) for entry in raw["images"]]
    except (KeyError, TypeError) as error:
        raise DatasetError(f"{file} is no COCO annotation file: it lacks {error}") from error
    if len(set(names)) < len(names) or BACKGROUND in names:
        raise DatasetError(f"{file}: two categories have one name, or one is {BACKGROUND!r}")
    items: list[tuple[Path, ReadLabel]] = []
    missing = []
    for name, number in listed:
        image = images / Path(name).name
        if image.is_file():
            own = objects.get(number, [])
            items.append((image, partial(_coco_label, own, ids)))
        else:
            missing.append(name)
    return Source(named([BACKGROUND, *names]), items, {"no image": missing})


def _coco_label(
    objects: Sequence[Mapping[str, Any]], ids: Mapping[Any, int], size: Size
) -> UInt8Array:
    """Draw the objects of one image. Raises: DatasetError."""
    parts = []
    for entry in objects:
        try:
            number = VOID if entry.get("iscrowd") else ids[entry["category_id"]]
            mask = _coco_mask(entry["segmentation"], size)
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"an annotation cannot be read: {error}") from error
        parts.append((int(mask.sum()), number, mask))
    label = np.zeros(size, np.uint8)
    for _area, number, mask in sorted(parts, key=lambda part: -part[0]):
        label[mask] = number
    return label


def _coco_mask(segmentation: Any, size: Size) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if isinstance(segmentation, list):
        return _polygons([np.reshape(points, (-1, 2)).tolist() for points in segmentation], size)
    counts = segmentation["counts"]
    if isinstance(counts, str):
        raise ValueError("its run lengths are compressed: write them as lists or polygons")
    if tuple(segmentation["size"]) != size or sum(counts) != size[0] * size[1]:
        raise ValueError("its run lengths are of another size")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(size, order="F")


def from_yolo(images: Path, labels: Path, file: Path) -> Source:
    """Read YOLO's polygons: lines of a class and points in shares of the sides.

    `file`: the data.yaml, whose `names` are the classes after the background. An image without a
    text file shows background alone, as YOLO has it. Raises: DatasetError.
    """
    raw = _parsed(file, yaml.safe_load)
    names = raw.get("names") if isinstance(raw, dict) else None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{file} has no list `names` of classes")
    if not labels.is_dir():
        raise DatasetError(f"there is no folder {labels}")
    items: list[tuple[Path, ReadLabel]] = [
        (image, partial(_yolo_label, labels / f"{image.stem}.txt", len(names)))
        for image in _images(images)
    ]
    return Source(named([BACKGROUND, *map(str, names)]), items)


def _yolo_label(path: Path, classes: int, size: Size) -> UInt8Array:
    label = np.zeros(size, np.uint8)
    text = path.read_text(encoding="utf-8-sig") if path.is_file() else ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            kind, *values = (float(word) for word in line.split())
        except ValueError as error:
            raise DatasetError(f"{path.name}, line {number}: {error}") from error
        if len(values) == 4:
            raise DatasetError(f"{path.name} holds boxes, not polygons")
        if len(values) < 6 or len(values) % 2 or not 0 <= kind < classes or kind % 1:
            raise DatasetError(
                f"{path.name}, line {number}: want a class below {classes} and pairs of x and y"
            )
        points = np.reshape(values, (-1, 2)) * size[::-1]
        label[_polygons([points.tolist()], size)] = int(kind) + 1
    return label


def _polygons(
    polygons: Sequence[Sequence[Sequence[float]]], size: Size
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Fill polygons of (x, y) points in pixels. Raises: ValueError if one has under 3."""
    height, width = size
    # Twice as large, so that there is a point for the centre of each pixel: Pillow fills what lies
    # on an edge, which would add a row and a column.
    canvas = Image.new("1", (2 * width, 2 * height))
    draw = ImageDraw.Draw(canvas)
    for points in polygons:
        if len(points) < 3:
            raise ValueError("a polygon has fewer than three points")
        draw.polygon([(2 * x, 2 * y) for x, y in points], fill=1)
    return np.array(canvas)[1::2, 1::2]


def _binary(path: Path) -> UInt8Array:
    """Read a mask of 0 and 255, or of 0 and 1, with what JPEG made of it."""
    try:
        with Image.open(path) as mask:
            values = np.array(mask.convert("L"))
    except Exception as error:
        raise unreadable("mask", path, error) from error
    threshold = 0 if int(values.max(initial=0)) <= 1 else 127
    return (values > threshold).astype(np.uint8)


def _images(folder: Path) -> list[Path]:
    images = list_files(folder, IMAGE_ENDINGS)
    if not images:
        raise DatasetError(f"{folder} holds no image ({', '.join(sorted(IMAGE_ENDINGS))})")
    for one, other in pairwise(images):
        if one.stem == other.stem:
            raise DatasetError(f"{one} and {other} would share one label: rename one of them")
    return images


def _parsed(file: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DatasetError(f"cannot read {file}: {error}") from error
