"""Lists the images of `fcn predict --ray`, and reads them wherever a worker runs.

A folder is read as without Ray. An address with `://` in it is read by fsspec, which knows object
stores (`s3://`, `gs://`, `abfs://`, each with a package of its own) and `file://`. Parquet, of
either, has an image in each row: bytes, or as Hugging Face writes them a struct with `bytes`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

from fcn_client.errors import FcnError, InvalidInput
from fcn_client.predict import frames
from fcn_client.predict.inputs import STILL, find, named, printable, unwritable

PARQUET: Final = ".parquet"
_CHANGED: Final = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")
"""How file systems tell that a file was written again; each has one of these."""


class Entry(NamedTuple):
    """Represents one image. source, frame, name, size and changed are those of an `Item`: of
    Parquet the frame is the row, counted in the file. path: for whoever reads it. group, row: in
    Parquet, the row group and the row in it; -1 for a file."""

    source: str
    frame: int
    name: str
    size: int
    changed: int
    path: str
    group: int = -1
    row: int = -1


@dataclass(frozen=True, slots=True)
class Listing:
    """Holds what was found. unusable: what cannot be an image, and why. ignored: other files."""

    entries: tuple[Entry, ...]
    unusable: tuple[tuple[str, str], ...] = ()
    ignored: int = 0


@dataclass(frozen=True)
class Source:
    """Represents a folder, a file or an address. column: of Parquet, has the images. Workers have
    a copy of it."""

    url: str
    column: str = "image"

    def listing(self, *, recursive: bool, leave_out: Path) -> Listing:
        """Lists the images. leave_out: a folder that is not meant. Raises: InvalidInput where there
        is nothing, or no right to look."""
        if "://" not in self.url and not _has_parquet(Path(self.url)):
            return _local(Path(self.url), recursive, leave_out)
        try:
            files, root = self._files(recursive)
        except FileNotFoundError:
            raise InvalidInput(f"{self.url} does not exist: give a folder, or an address") from None
        except ModuleNotFoundError:
            raise
        except PermissionError as error:
            raise InvalidInput(
                f"{self.url} cannot be listed: {_said(error)}: see that every node has credentials "
                "with the rights to list and to read"
            ) from error
        except Exception as error:  # each file system has errors of its own
            raise InvalidInput(f"{self.url} cannot be listed: {_said(error)}") from error
        tables = [path for path in files if path.suffix.lower() == PARQUET]
        images = [path for path in files if path.suffix.lower() in STILL]
        if tables and images:
            raise InvalidInput(f"{self.url} holds images and Parquet: give one or the other")
        if not tables and not images:
            raise InvalidInput(f"{self.url} holds no image and no Parquet")
        chosen = named(*(tables or images), root=root)
        ignored = len(files) - len(chosen)
        entries: list[Entry] = []
        unusable: list[tuple[str, str]] = []
        for path, source, name in chosen:
            if why := unwritable(source):
                unusable.append((printable(source), why))
                continue
            size, changed = _stamp(files[path])
            entry = Entry(source, -1, name, size, changed, str(path))
            if not tables:
                entries.append(entry)
                continue
            try:
                entries += self._rows(entry)
            except FcnError as error:
                unusable.append((source, str(error)))
        return Listing(tuple(entries), tuple(unusable), ignored)

    def read(self, entry: Entry) -> bytes:
        """Reads an image, from any thread. Raises: InvalidInput."""
        try:
            if entry.group >= 0:
                return _images(self, entry.path, entry.group)[entry.row]
            return bytes(_file_system(self.url).cat_file(entry.path))
        except FcnError:
            raise
        except PermissionError as error:
            raise InvalidInput(f"cannot be read: {_said(error)}: there is no right to") from error
        except Exception as error:
            raise InvalidInput(f"cannot be read: {_said(error)}") from error

    def _files(
        self, recursive: bool
    ) -> tuple[dict[PurePosixPath, Mapping[str, Any]], PurePosixPath]:
        """Lists files with what is known of them, and the folder that they are in."""
        import fsspec

        system, path = fsspec.core.url_to_fs(self.url)
        depth = None if recursive else 1
        system.invalidate_cache()  # what it listed before, for another run in this process
        found = system.find(path, maxdepth=depth, detail=True)
        if not found:
            raise FileNotFoundError(path)
        root = PurePosixPath(path)
        files = {PurePosixPath(name): info for name, info in found.items()}
        if list(files) == [root]:  # it is a file
            root = root.parent
        kept = (path for path in sorted(files) if not path.name.startswith("."))
        return {path: files[path] for path in kept}, root

    def _rows(self, file: Entry) -> Iterator[Entry]:
        """Yields the rows of one file of Parquet. Raises: InvalidInput."""
        number = 0
        table = _parquet(self, file.path)
        for group in range(table.num_row_groups):
            for row in range(table.metadata.row_group(group).num_rows):
                yield file._replace(
                    frame=number, name=f"{file.name}/{number:06d}", group=group, row=row
                )
                number += 1


_ONE_AT_A_TIME: Final = threading.Lock()
"""A row group is read once, by whichever thread comes first."""


def _has_parquet(path: Path) -> bool:
    if path.suffix.lower() == PARQUET:
        return True
    return path.is_dir() and any(path.glob(f"*{PARQUET}"))


def _local(path: Path, recursive: bool, leave_out: Path) -> Listing:
    """Lists a folder as without Ray; a video's frames are no work for several nodes."""
    found = find(path, recursive=recursive, leave_out=leave_out)
    entries, unusable = [], list(found.unusable)
    for file, source, name in found.files:
        if frames.is_moving(file):
            unusable.append((source, "has frames: predict it without --ray"))
            continue
        try:
            stat = file.stat()
        except OSError as error:
            unusable.append((source, f"cannot be read: {error.strerror}"))
            continue
        where = str(file.resolve())
        entries.append(Entry(source, -1, name, stat.st_size, stat.st_mtime_ns, where))
    return Listing(tuple(entries), tuple(unusable), found.ignored)


def _stamp(info: Mapping[str, Any]) -> tuple[int, int]:
    """Reads size and time of change, or what else changes with the file."""
    told = next((str(info[key]) for key in _CHANGED if info.get(key)), "")
    digest = hashlib.sha256(told.encode()).digest()
    return int(info.get("size") or 0), int.from_bytes(digest[:6], "big")


@lru_cache(maxsize=4)
def _file_system(url: str) -> Any:
    import fsspec

    return fsspec.core.url_to_fs(url)[0]


@lru_cache(maxsize=8)
def _parquet(source: Source, path: str) -> Any:
    """Opens a file of Parquet. Raises: InvalidInput."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(_file_system(source.url).open(path))
    except (OSError, pyarrow.ArrowException) as error:
        raise InvalidInput(f"is no Parquet that can be read: {_said(error)}") from error
    columns = table.schema_arrow.names
    if source.column not in columns:
        there = ", ".join(columns)
        raise InvalidInput(f"has no column {source.column!r}: name one of {there} (--image-column)")
    return table


def _images(source: Source, path: str, group: int) -> list[bytes]:
    """Reads the images of a row group, once for all of its rows. Raises: InvalidInput."""
    with _ONE_AT_A_TIME:
        return _row_group(source, path, group)


@lru_cache(maxsize=1)
def _row_group(source: Source, path: str, group: int) -> list[bytes]:
    column = _parquet(source, path).read_row_group(group, [source.column])[source.column]
    found = []
    for value in column.to_pylist():
        image = value.get("bytes") if isinstance(value, dict) else value
        found.append(image if isinstance(image, bytes) else b"")
    return found


def _said(error: BaseException) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__)
