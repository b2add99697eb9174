"""Finds what is to be predicted: the images and frames below a path, one `Item` each."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Final, NoReturn, TypeVar

from fcn_client.errors import FcnError, InvalidInput
from fcn_client.images import encode, file_bytes
from fcn_client.predict import frames

P = TypeVar("P", bound=PurePath)
STILL: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
KNOWN: Final = STILL | frames.VIDEO | frames.MAYBE_MOVING


@dataclass(frozen=True, slots=True)
class Item:
    """Represents one image or frame.

    source: as the user would name it. name: of its outputs, without suffix; empty where it fails.

    stamp: size and time of change of the file, by which a changed one is noticed. load: a file's
    bytes for the labeller. Raises, there: InvalidInput.
    """

    source: str
    frame: int | None
    name: str
    stamp: tuple[int, int]
    load: Callable[[], bytes] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Found:
    """Holds the files to predict and their outputs' names. `ignored`: files of other kinds.
    `unusable`: what is named like an image or a video and cannot be one, and why."""

    files: tuple[tuple[Path, str, str], ...]
    ignored: int = 0
    unusable: tuple[tuple[str, str], ...] = ()

    def count(self) -> int | None:
        """Counts images and frames, unless a video must be decoded to know."""
        total = len(self.unusable)
        for path, _, _ in self.files:
            n = frames.count(path) if frames.is_moving(path) else 1
            if n is None:
                return None
            total += n
        return total

    def items(self, every: int = 1) -> Iterator[Item]:
        """Yields items; a frame is decoded in its turn. `every`: of frames, take each n-th."""
        for path, source, name in self.files:
            try:
                found = path.stat()
            except OSError as error:  # gone since it was found
                yield failing(source, f"cannot be read: {error.strerror}")
                continue
            stamp = (found.st_size, found.st_mtime_ns)
            if frames.is_moving(path):
                yield from _frames(path, source, name, stamp, every)
            else:
                yield Item(source, None, name, stamp, partial(file_bytes, path))
        for source, why in self.unusable:
            yield failing(source, why)


def find(path: Path, *, recursive: bool = False, leave_out: Path | None = None) -> Found:
    """Finds the files to predict.

    path: a file, or a folder of them. leave_out: a folder in it whose files are not meant.

    Two files that differ in the suffix only keep it in the names of their outputs.

    Raises: InvalidInput when there is nothing to predict.
    """
    if os.path.isfile(path):
        why = unwritable(path.name)
        return Found((), 0, ((printable(path.name), why),)) if why else Found(named(path))
    if not os.path.isdir(path):
        raise InvalidInput(f"{path} does not exist: give an image, a video or a folder of them")
    if leave_out is not None and Path(_real(path)).is_relative_to(_real(leave_out)):
        raise InvalidInput(f"{leave_out} is where the images are: give another --out")
    unusable: list[tuple[str, str]] = []
    known, ignored = [], 0
    for entry in _entries(path, recursive, leave_out, unusable):
        # Files that begin with a dot are the system's: macOS has a `._a.jpg` for each a.jpg.
        if entry.suffix.lower() not in KNOWN or entry.name.startswith("."):
            ignored += not os.path.isdir(entry)
            continue
        source = entry.relative_to(path).as_posix()
        if why := unwritable(source) or _not_a_file(entry):
            unusable.append((printable(source), why))
        else:
            known.append(entry)
    if not known and not unusable:
        raise InvalidInput(
            f"{path} holds no image or video{'' if recursive else ' (try --recursive)'}"
        )
    return Found(named(*known, root=path), ignored, tuple(unusable))


def _entries(
    folder: Path, recursive: bool, leave_out: Path | None, unusable: list[tuple[str, str]]
) -> Iterator[Path]:
    """Yields files, and folders that are not gone into. unusable: gets those that cannot be."""

    def note(error: OSError) -> None:
        there = Path(os.fsdecode(error.filename)).relative_to(folder)
        unusable.append((printable(there.as_posix()), f"cannot be read: {error.strerror}"))

    hidden = None if leave_out is None else _real(leave_out)
    for here, folders, files in os.walk(folder, onerror=note):
        within = (
            [] if recursive else [name for name in folders if _real(Path(here, name)) != hidden]
        )
        yield from sorted(Path(here, name) for name in (*files, *within))
        if not recursive:
            return
        folders[:] = sorted(name for name in folders if _real(Path(here, name)) != hidden)


def _real(path: Path) -> str:
    return os.path.realpath(path)  # unlike Path.resolve, also of a link to itself


def named(*files: P, root: P | None = None) -> tuple[tuple[P, str, str], ...]:
    """Gives each file its source and the name of its outputs."""
    sources = [file.relative_to(root or file.parent) for file in files]
    stems = Counter(source.with_suffix("") for source in sources)
    return tuple(
        (
            file,
            source.as_posix(),
            (source if stems[source.with_suffix("")] > 1 else source.with_suffix("")).as_posix(),
        )
        for file, source in zip(files, sources, strict=True)
    )


def _not_a_file(path: Path) -> str:
    """Says why it cannot be read as a file, or nothing: a pipe must not even be opened."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a link that leads nowhere" if path.is_symlink() else "is gone"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if stat.S_ISDIR(mode):
        return "is a folder, not a file: --recursive looks into folders"
    return "" if stat.S_ISREG(mode) else "is no file"


def unwritable(name: str) -> str:
    """Says why a name cannot stand in the outputs, which are UTF-8 and have lines, or nothing."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "its name has control characters in it: rename it"
    return ""


def printable(text: str) -> str:
    """Writes bytes that are not UTF-8, and control characters, as escapes: `caf\\xe9.jpg`."""
    return "".join(_escaped(c) if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python has a byte of a name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def failing(source: str, why: str) -> Item:
    """Makes an item of what cannot be read, whose loading says why."""
    return Item(source, None, "", (0, 0), partial(_fail, InvalidInput(why)))


def _frames(
    path: Path, source: str, name: str, stamp: tuple[int, int], every: int
) -> Iterator[Item]:
    """Yields the frames; of a file that breaks off those before, and then one item that fails."""
    number = 0
    try:
        for number, rgb in enumerate(frames.frames(path)):
            if number % every == 0:
                yield Item(source, number, f"{name}/{number:06d}", stamp, partial(encode, rgb))
    except InvalidInput as error:
        yield failing(source, str(error))


def _fail(error: FcnError) -> NoReturn:
    raise error
