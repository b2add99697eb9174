"""Writes a folder data set, and says what was dropped and why."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

from training.datasets.base import VOID, DatasetError, UInt8Array, check_labels, read_image
from training.datasets.make.sources import ReadLabel, Source
from training.datasets.resize import Size, resize_image, resize_label, shrunk_size

_ASPECT_TOLERANCE = 0.01
"""The sides' ratio of a mask may differ so much from its image's: sides are whole pixels."""
_JPEG_QUALITY = 95
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Made:
    """Says what was written, and what was not."""

    root: Path
    images: dict[str, int]
    """Images written, by split."""
    dropped: dict[str, list[str]]
    """Names of what was left out, by the reason."""
    pixels: dict[str, int]
    """Pixels written, by class; void is among them."""
    resized: list[str] = field(default_factory=list)
    """Masks that were scaled to the size of their image."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {
            "root": str(self.root),
            "images": self.images,
            "dropped": self.dropped,
            "pixels": self.pixels,
            "masks_resized": self.resized,
        }

    def table(self) -> str:
        """Format it for a reader."""
        lines = [f"{self.root}: " + ", ".join(f"{n} {split}" for split, n in self.images.items())]
        total = max(1, sum(self.pixels.values()))
        lines += [f"  {name:<20} {100 * n / total:6.2f} %" for name, n in self.pixels.items()]
        if self.resized:
            lines.append(f"{len(self.resized)} masks had another size than their image: scaled")
        for reason, names in self.dropped.items():
            more = ", ..." if len(names) > _SHOWN else ""
            lines.append(f"dropped, {reason}: {len(names)} ({', '.join(names[:_SHOWN])}{more})")
        return "\n".join(lines)


def make(
    source: Source,
    splits: dict[str, str],
    root: Path,
    *,
    name: str,
    licence: str,
    longest_px: int | None = None,
) -> Made:
    """Write the images of `source` that `splits` names, by stem, into a new folder `root`.

    An image that need not be scaled is copied as it is. One that cannot be read, or whose label
    cannot be used, is dropped, not the rest. Raises: DatasetError if `root` holds anything, or
    nothing could be written.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError(f"{root} is there already: choose another folder")
    dropped = {reason: list(names) for reason, names in source.dropped.items() if names}
    made = Made(root, dict.fromkeys(sorted(set(splits.values())), 0), dropped, {})
    counts = np.zeros(VOID + 1, np.int64)
    for image_path, read_label in tqdm(source.items, "images", unit="image", delay=2):
        split = splits.get(image_path.stem)
        if split is None:
            dropped.setdefault("in no list", []).append(image_path.name)
            continue
        try:
            image = read_image(image_path)
            label = _label(read_label, image.shape[:2], len(source.classes), image_path, made)
        except DatasetError as error:
            reason = error.kind if error.kind in ("image", "aspect ratio") else str(error)
            dropped.setdefault(reason.replace(str(image_path), image_path.name), []).append(
                image_path.name
            )
            continue
        size = shrunk_size(image.shape[:2], longest_px)
        label = resize_label(label, size)
        _write(root / split, image_path, image, label, size)
        counts += np.bincount(label.ravel(), minlength=VOID + 1)
        made.images[split] += 1
    if not sum(made.images.values()):
        raise DatasetError(f"nothing was written. {made.table()}")
    for info in source.classes:
        made.pixels[info.name] = int(counts[info.id])
    made.pixels["void"] = int(counts[VOID])
    listed = [{"name": info.name, "color": list(info.color)} for info in source.classes]
    (root / "classes.yaml").write_text(
        yaml.safe_dump({"name": name, "licence": licence, "classes": listed}, sort_keys=False),
        encoding="utf-8",
    )
    return made


def _label(read_label: ReadLabel, size: Size, classes: int, image: Path, made: Made) -> UInt8Array:
    """Read a label and give it the size of its image. Raises: DatasetError."""
    label = read_label(size)
    check_labels(label, classes, image)
    if label.shape == size:
        return label
    (height, width), (own_height, own_width) = size, label.shape
    if abs(height * own_width / (width * own_height) - 1) > _ASPECT_TOLERANCE:
        raise DatasetError(f"{image} has another aspect ratio than its mask", "aspect ratio")
    made.resized.append(image.name)
    return resize_label(label, size)


def _write(folder: Path, source: Path, image: UInt8Array, label: UInt8Array, size: Size) -> None:
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    if image.shape[:2] == size:
        shutil.copyfile(source, images / source.name)
    else:
        scaled = Image.fromarray(resize_image(image, size))
        scaled.save(images / f"{source.stem}.jpg", quality=_JPEG_QUALITY, subsampling=0)
    Image.fromarray(label).save(labels / f"{source.stem}.png")
