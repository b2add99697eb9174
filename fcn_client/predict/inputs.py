"""Finds what is to be predicted: the images and frames below a path, one `Item` each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from fcn_client.errors import FcnError, InvalidInput
from fcn_client.images import encode, file_bytes
from fcn_client.predict import frames

STILL: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
KNOWN: Final = STILL | frames.VIDEO | frames.MAYBE_MOVING


@dataclass(frozen=True, slots=True)
class Item:
    """Represents one image or frame.

    source: as the user would name it. name: of its outputs, without suffix.

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
    """Holds the files to predict and their outputs' names. `ignored`: files of other kinds."""

    files: tuple[tuple[Path, str, str], ...]
    ignored: int

    def count(self) -> int | None:
        """Counts images and frames, unless a video must be decoded to know."""
        total = 0
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
                stat = path.stat()
            except OSError as error:  # gone since it was found
                load = partial(_fail, InvalidInput(f"cannot be read: {error.strerror}"))
                yield Item(source, None, name, (0, 0), load)
                continue
            stamp = (stat.st_size, stat.st_mtime_ns)
            if frames.is_moving(path):
                yield from _frames(path, source, name, stamp, every)
            else:
                yield Item(source, None, name, stamp, partial(file_bytes, path))


def find(path: Path, *, recursive: bool = False, leave_out: Path | None = None) -> Found:
    """Finds the files to predict.

    path: a file, or a folder of them. leave_out: a folder in it whose files are not meant.

    Two files that differ in the suffix only keep it in the names of their outputs.

    Raises: InvalidInput when there is nothing to predict.
    """
    if path.is_file():
        return Found(((path, path.name, path.stem),), 0)
    if not path.is_dir():
        raise InvalidInput(f"{path} does not exist: give an image, a video or a folder of them")
    within = sorted(p for p in (path.rglob("*") if recursive else path.iterdir()) if p.is_file())
    hidden = leave_out.resolve() if leave_out else None
    mine = [p for p in within if hidden is None or not p.resolve().is_relative_to(hidden)]
    known = [p for p in mine if p.suffix.lower() in KNOWN and not p.name.startswith(".")]
    if not known:
        raise InvalidInput(
            f"{path} holds no image or video{'' if recursive else ' (try --recursive)'}"
        )
    stems = Counter(p.with_suffix("") for p in known)
    files = []
    for p in known:
        source = p.relative_to(path)
        name = source if stems[p.with_suffix("")] > 1 else source.with_suffix("")
        files.append((p, source.as_posix(), name.as_posix()))
    return Found(tuple(files), len(mine) - len(known))


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
        yield Item(source, None, name, stamp, partial(_fail, error))


def _fail(error: FcnError) -> NoReturn:
    raise error
