"""Keeps the output folder: images, the journal that a resumed job reads, the CSV of class shares.

    <out>/label_maps/<name>.png   8-bit palette PNG, as the server sent it
    <out>/overlays/<name>.png
    <out>/colors/<name>.png
    <out>/shares.csv              a row for each image, a column for each class
    <out>/predict.jsonl           the journal: a line for each image that is complete

Every file appears whole or not at all; an item's journal line follows its images.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from fcn_client.errors import DecodeError, InvalidInput
from fcn_client.images import VOID, encode, overlay, read_rgb
from fcn_client.predict.inputs import Item, printable, unwritable
from fcn_client.predict.labeller import Labeller
from fcn_client.types import UInt8Array, background_of

# So that overlays show what the server reads: text of any length beside the pixels, and TIFFs that
# Pillow unpacks wrongly without libtiff.
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 1 << 26, 1 << 28
TiffImagePlugin.READ_LIBTIFF = True

IMAGE_FOLDERS: Final = {"label_map": "label_maps", "overlay": "overlays", "color": "colors"}
JOURNAL: Final = "predict.jsonl"
SHARES: Final = "shares.csv"


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


class Folder:
    """Keeps the outputs of one job, and of those before it in the same folder."""

    def __init__(
        self,
        root: Path,
        labeller: Labeller,
        *,
        write: Sequence[str] = ("label_map", "overlay"),
        alpha: float = 0.5,
        keep: Sequence[str] = (),
        afresh: bool = False,
    ) -> None:
        """write: of IMAGE_FOLDERS. keep: what the labeller was given. afresh: nothing is done yet.

        Raises: OSError, InvalidInput.
        """
        if not 0.0 <= alpha <= 1.0:
            raise InvalidInput(f"alpha is {alpha:g}: give a number from 0 to 1")
        self.root = root
        self.classes = labeller.classes
        self._write = tuple(write)
        self._alpha = alpha
        self._settings = {
            "model": labeller.identity,
            "keep": sorted(keep),
            "alpha": alpha if "overlay" in write else None,
        }
        self._model, self._version = labeller.name, labeller.version
        self.model = f"{labeller.name} {labeller.version}"
        root.mkdir(parents=True, exist_ok=True)
        journal = root / JOURNAL
        if afresh:
            journal.unlink(missing_ok=True)
        self._records = _read(journal)
        for record in self._records.values():
            if (other := record.settings.get("model")) != labeller.identity:
                raise InvalidInput(
                    f"{root} was made by another network, {other}, and this is "
                    f"{labeller.identity}: give another --out, or --afresh to do all of it again"
                )
        self._journal = journal.open("a", encoding="utf-8")
        self._folds = _folds(root)
        self._claims: dict[str, Item] = {}
        self.unreadable: dict[tuple[str, int | None], str] = {}

    def claim(self, item: Item) -> str:
        """Takes the names of the item's outputs for it. Returns whose they are already, or nothing:
        `film.mp4` has frames `film/000000`, as a folder `film` may, and on some file systems names
        that differ in case or in how accents are written are one."""
        name = item.name
        if not name:
            return ""
        if self._folds:
            name = unicodedata.normalize("NFC", name).casefold()
        first = self._claims.setdefault(name, item)
        return "" if first == item else first.source

    def unclaimed(self) -> int:
        """Counts the images of earlier runs that no item of this one is."""
        return len(self._records.keys() - {item.name for item in self._claims.values()})

    def holds(self, item: Item) -> bool:
        """Tells whether the item is complete: same file and settings, and its images are there."""
        record = self._records.get(item.name)
        return (
            record is not None
            and (record.source, record.frame, record.stamp) == (item.source, item.frame, item.stamp)
            and record.settings == self._settings
            and set(self._write) <= set(record.written)
            and all(os.path.isfile(self._path(kind, item.name)) for kind in self._write)
        )

    def write(self, item: Item, source: bytes, label_map_png: bytes) -> Record:
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
        for kind in self._write:
            if kind == "label_map":
                body = label_map_png
            elif kind == "color":
                body = encode(palette[label_map])
            else:
                body = encode(self._overlay(read_rgb(source), label_map, palette))
            _replace(self._path(kind, item.name), body)
        pixels = np.bincount(label_map.ravel(), minlength=256)
        shares = {c.name: int(pixels[c.id]) / label_map.size for c in self.classes}
        shares["void"] = int(pixels[VOID]) / label_map.size
        height, width = label_map.shape
        return Record(
            item.name,
            item.source,
            item.frame,
            item.stamp,
            self._settings,
            self._write,
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
        background = None if self._settings["keep"] else background_of(self.classes)
        return overlay(rgb, label_map, palette, self._alpha, background)

    def note(self, record: Record) -> bool:
        """Notes, from one thread, that the item is complete. Tells whether its outputs took the
        place of those of another file, or of another content of it."""
        before = self._records.get(record.name)
        self._records[record.name] = record
        self._journal.write(json.dumps(asdict(record)) + "\n")
        self._journal.flush()
        return before is not None and (before.source, before.stamp) != (record.source, record.stamp)

    def close(self) -> None:
        """Writes the CSV: a row for each item done with these settings, now or before."""
        self._journal.close()
        text = io.StringIO(newline="")
        rows = csv.writer(text, lineterminator="\n")
        names = [*(c.name for c in self.classes), "void"]
        rows.writerow(["source", "frame", "height", "width", "model", "version", *names])
        for r in self._done():
            frame = "" if r.frame is None else r.frame
            shares = (f"{r.shares.get(name, 0.0):.6f}" for name in names)
            rows.writerow([r.source, frame, r.height, r.width, self._model, self._version, *shares])
        _replace(self.root / SHARES, text.getvalue().encode())

    def label_maps(self) -> Iterator[tuple[Record, UInt8Array]]:
        """Yields those that the CSV has a row for, in its order, read from their files.

        `unreadable` gets those that cannot be, and why.
        """
        for record in self._done():
            path = self._path("label_map", record.name)
            try:
                with Image.open(path, formats=("PNG",)) as image:
                    label_map = np.array(image)
            except FileNotFoundError:  # somebody does not want it any more
                continue
            except (OSError, SyntaxError, ValueError):
                why = f"{path} cannot be read: run again with --afresh"
                self.unreadable[record.source, record.frame] = printable(why)
                continue
            yield record, label_map

    def _done(self) -> list[Record]:
        done = (r for r in self._records.values() if r.settings == self._settings)
        return sorted(done, key=lambda r: (r.source, r.frame or 0))

    def _path(self, kind: str, name: str) -> Path:
        return self.root / IMAGE_FOLDERS[kind] / f"{name}.png"


def _read(journal: Path) -> dict[str, Record]:
    """Reads the records by name; the last one counts, and a line that was cut off does not."""
    records = {}
    try:
        text = journal.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    for line in text.splitlines():
        try:
            raw = json.loads(line)
            raw["stamp"], raw["written"] = tuple(raw["stamp"]), tuple(raw["written"])
            record = Record(**raw)
        except (KeyError, TypeError, ValueError):
            continue
        if unwritable(record.source):  # which earlier versions wrote, and could not make a table of
            continue
        records[record.name] = record
    if text and not text.endswith("\n"):
        with journal.open("a", encoding="utf-8") as file:
            file.write("\n")  # else the next line would be lost with this one
    return records


def _folds(folder: Path) -> bool:
    """Tells whether names that differ in case are one in this folder, as on macOS and Windows."""
    path = folder / ".case.part"
    path.touch()
    try:
        return path.with_name(path.name.swapcase()).exists()
    finally:
        path.unlink(missing_ok=True)


def _replace(path: Path, body: bytes) -> None:
    with _part_of(path) as file:
        file.write(body)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Opens a text file to write, which takes its place when the block ends well."""
    with _part_of(path) as file, io.TextIOWrapper(file, encoding="utf-8") as text:
        yield text


@contextmanager
def _part_of(path: Path) -> Iterator[BinaryIO]:
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
