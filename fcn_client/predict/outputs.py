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
import io
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from fcn_client.errors import InvalidInput
from fcn_client.predict.inputs import Item, printable, unwritable
from fcn_client.predict.labeller import Labeller
from fcn_client.predict.writer import Record, Writer, replace
from fcn_client.types import UInt8Array

JOURNAL: Final = "predict.jsonl"
SHARES: Final = "shares.csv"


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
        """write: of IMAGE_FOLDERS; the attribute of that name writes them. keep: what the labeller
        was given. afresh: nothing is done yet.

        Raises: OSError, InvalidInput.
        """
        if not 0.0 <= alpha <= 1.0:
            raise InvalidInput(f"alpha is {alpha:g}: give a number from 0 to 1")
        self.root = root
        self.classes = labeller.classes
        self._write = tuple(write)
        self._settings = {
            "model": labeller.identity,
            "keep": sorted(keep),
            "alpha": alpha if "overlay" in write else None,
        }
        self.write = Writer(root, self.classes, self._write, alpha, self._settings)
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
            and all(os.path.isfile(self.write.path(kind, item.name)) for kind in self._write)
        )

    def note(self, record: Record) -> bool:
        """Notes, from one thread, that the item is complete. Tells whether its outputs took the
        place of those of another file, or of another content of it."""
        before = self._records.get(record.name)
        self._records[record.name] = record
        self._journal.write(write_record(record) + "\n")
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
        replace(self.root / SHARES, text.getvalue().encode())

    def label_maps(self) -> Iterator[tuple[Record, UInt8Array]]:
        """Yields those that the CSV has a row for, in its order, read from their files.

        `unreadable` gets those that cannot be, and why.
        """
        for record in self._done():
            path = self.write.path("label_map", record.name)
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


def read_record(line: str) -> Record:
    """Reads a line of the journal. Raises: KeyError, TypeError, ValueError."""
    raw = json.loads(line)
    raw["stamp"], raw["written"] = tuple(raw["stamp"]), tuple(raw["written"])
    return Record(**raw)


def write_record(record: Record) -> str:
    """Prints a line of the journal, without its end."""
    return json.dumps(asdict(record))


def _read(journal: Path) -> dict[str, Record]:
    """Reads the records by name; the last one counts, and a line that was cut off does not."""
    records = {}
    try:
        text = journal.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    for line in text.splitlines():
        try:
            record = read_record(line)
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
