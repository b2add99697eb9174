"""Writes what is made of one image, from any thread or process that sees the output folder."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from fcn_client.errors import DecodeError
from fcn_client.images import VOID, encode, overlay, read_rgb
from fcn_client.predict.inputs import Item
from fcn_client.types import ClassInfo, UInt8Array, background_of

# So that overlays show what the server reads: text of any length beside the pixels, and TIFFs that
# Pillow unpacks wrongly without libtiff.
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 1 << 26, 1 << 28
TiffImagePlugin.READ_LIBTIFF = True

IMAGE_FOLDERS: Final = {"label_map": "label_maps", "overlay": "overlays", "color": "colors"}


@dataclass(frozen=True, slots=True)
class Record:
    """Represents a complete item. settings: what else outputs depend on. shares: by class."""

    name: str
    source: str
    frame: int | None
    stamp: tuple[int, int]
    settings: dict[str, Any]
    written: tuple[str, ...]
    height: int
    width: int
    shares: dict[str, float]


@dataclass(frozen=True, slots=True)
class Writer:
    """Makes an item's images of its label map. root: the output folder. write: of IMAGE_FOLDERS.
    alpha: opacity of overlays. settings: what records say, besides."""

    root: Path
    classes: tuple[ClassInfo, ...]
    write: tuple[str, ...]
    alpha: float
    settings: dict[str, Any]

    def path(self, kind: str, name: str) -> Path:
        """Says where an item's image is."""
        return self.root / IMAGE_FOLDERS[kind] / f"{name}.png"

    def __call__(self, item: Item, source: bytes, label_map_png: bytes) -> Record:
        """Writes the item's images, from any thread. Raises: FcnError, OSError."""
        try:
            with Image.open(io.BytesIO(label_map_png), formats=("PNG",)) as image:
                mode, label_map = image.mode, np.array(image)
                palette = np.zeros((256, 3), np.uint8)
                colors = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
                palette[: len(colors)] = colors
        except (OSError, SyntaxError, ValueError) as error:
            raise DecodeError("the label map is no PNG") from error
        if mode != "P":
            raise DecodeError(f"the label map is a {mode} image, not one with a palette")
        for kind in self.write:
            if kind == "label_map":
                body = label_map_png
            elif kind == "color":
                body = encode(palette[label_map])
            else:
                body = encode(self._overlay(read_rgb(source), label_map, palette))
            replace(self.path(kind, item.name), body)
        pixels = np.bincount(label_map.ravel(), minlength=256)
        shares = {c.name: int(pixels[c.id]) / label_map.size for c in self.classes}
        shares["void"] = int(pixels[VOID]) / label_map.size
        height, width = label_map.shape
        return Record(
            item.name,
            item.source,
            item.frame,
            item.stamp,
            self.settings,
            self.write,
            height,
            width,
            shares,
        )

    def _overlay(self, rgb: UInt8Array, label_map: UInt8Array, palette: UInt8Array) -> UInt8Array:
        """Raises: DecodeError."""
        if rgb.shape[:2] != label_map.shape:
            raise DecodeError(
                f"the label map is {list(label_map.shape)}, and the image {list(rgb.shape[:2])} "
                "where it is read here: leave overlay out of --write"
            )
        # Where classes are chosen, only a background that was named is left: it is asked for.
        background = None if self.settings["keep"] else background_of(self.classes)
        return overlay(rgb, label_map, palette, self.alpha, background)


def replace(path: Path, body: bytes) -> None:
    """Writes a file, whole or not at all."""
    with part_of(path) as file:
        file.write(body)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Opens a text file to write, which takes its place when the block ends well."""
    with part_of(path) as file, io.TextIOWrapper(file, encoding="utf-8") as text:
        yield text


@contextmanager
def part_of(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that appears whole, so that a job that is killed leaves no half of one.

    The part a killed job leaves has the name that the next one writes to. It is a digest: the
    file's own name may be as long as the file system allows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:24]
    part = path.with_name(f".{digest}.part")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
