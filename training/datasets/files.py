"""Finds a data set's files under the names that people have.

One rule for every format: two names are the same if they are so in Unicode's NFC (macOS writes é as
two characters) and their endings differ in case alone; and what begins with a dot (macOS' `._x`,
`.DS_Store`) is no file of a data set. A link is followed.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from training.datasets.base import DatasetError

Pair = tuple[Path, Path]
"""Image file and label file of one sample; neither need exist."""

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
LABEL_ENDING = ".png"


def key(name: str) -> str:
    """Fold a file's name to what names of the same file have in common."""
    stem, ending = os.path.splitext(unicodedata.normalize("NFC", name))
    return stem + ending.lower()


def list_files(folder: Path, endings: Collection[str], tail: str = "") -> list[Path]:
    """List the files of a folder by name, those alone whose stem ends in `tail`; none if there is
    no such folder."""
    if not folder.is_dir():
        return []
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise _closed(folder, error) from error
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in endings
        and path.stem.endswith(tail)
        and not path.name.startswith(".")
        and not path.is_dir()
    )


def pair_by_name(
    images: Path,
    labels: Path,
    endings: Collection[str] = IMAGE_ENDINGS,
    tails: tuple[str, str] = ("", ""),
) -> list[Pair]:
    """Pair each image with the label of the same stem, less the `tails` of the two.

    A folder without any image gives the pairs that the labels ask for: who reads labels alone needs
    no more, and everybody else is told which images are missing.
    Raises: DatasetError if two images want one label.
    """
    image_tail, label_tail = tails
    pairs: dict[str, Pair] = {}
    for image in list_files(images, endings, image_tail):
        label = labels / f"{image.stem.removesuffix(image_tail)}{label_tail}{LABEL_ENDING}"
        if (other := pairs.get(key(label.name))) is not None:
            raise DatasetError(f"{other[0]} and {image} share one label: rename one of them")
        pairs[key(label.name)] = (image, label)
    if pairs:
        return list(pairs.values())
    ending = min(endings, key=lambda one: (one != ".jpg", one))
    return [
        (images / f"{label.stem.removesuffix(label_tail)}{image_tail}{ending}", label)
        for label in list_files(labels, {LABEL_ENDING}, label_tail)
    ]


def locate(pairs: Iterable[Pair]) -> tuple[list[Pair], list[Path]]:
    """Give the files of `pairs` the names that they have on disk, and list those that are missing,
    in order.

    Raises: DatasetError if two files have a name that is the same by the rule above.
    """
    listings: dict[Path, dict[str, list[str]]] = {}
    missing: list[Path] = []

    def find(path: Path) -> Path:
        if path.parent not in listings:
            listings[path.parent] = _listing(path.parent)
        names = listings[path.parent].get(key(path.name), [])
        if len(names) > 1:
            both = " and ".join(str(path.parent / name) for name in sorted(names)[:2])
            raise DatasetError(f"{both} are the same name but for case or accents: remove one")
        if not names:
            missing.append(path)
            return path
        return path if names[0] == path.name else path.parent / names[0]

    return [(find(image), find(label)) for image, label in pairs], missing


def on_disk(path: Path) -> Path:
    """Give one file the name that it has on disk; `path` if it is missing. Raises: DatasetError."""
    return path if path.is_file() else locate([(path, path)])[0][0][0]


def _listing(folder: Path) -> dict[str, list[str]]:
    """Read the names of a folder's files by their keys."""
    names: dict[str, list[str]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():  # of the link's target; a broken one is missing
                    names.setdefault(key(entry.name), []).append(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise _closed(folder, error) from error
    return names


def _closed(folder: Path, error: OSError) -> DatasetError:
    return DatasetError(f"cannot read the folder {folder}: {error.strerror}")
