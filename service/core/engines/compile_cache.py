"""Keeps compiled networks in a folder, so that the next start need not compile them again.

A folder for each model file, version of the engine and processor holds a blob for each size and
`sizes.json`, which tells how often a size was asked for. What cannot be read or written is done
without: the cache never stands between a request and its answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 512 * 1024 * 1024
"""Bytes of the blobs of all models; those not used for longest go first. One has about the bytes of
its model's file."""
_MAX_COUNTED: Final = 256
_COUNTS: Final = "sizes.json"
_DIGEST_BYTES: Final = 32
_log = logging.getLogger(__name__)

Size = tuple[int, int]
"""Height and width."""


class CompileCache:
    """Keeps the blobs of one model file; may be used from any thread."""

    def __init__(self, root: Path | None, model: Path, made_by: Sequence[str]) -> None:
        """root: None keeps nothing. made_by: all that a blob depends on besides the file."""
        self._root = root
        self._warned = False
        self._counts: Counter[Size] = Counter()
        if root is None:
            return
        digest = hashlib.sha256(model.read_bytes())
        for part in made_by:
            digest.update(b"\0" + part.encode())
        self._folder = root / digest.hexdigest()[:32]
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            for size, count in json.loads((self._folder / _COUNTS).read_bytes()).items():
                height, _, width = size.partition("x")
                self._counts[int(height), int(width)] = int(count)

    def often(self, n: int) -> list[Size]:
        """Lists the n sizes that were asked for most often, in this and in earlier runs."""
        return [size for size, _ in Counter(dict(self._counts)).most_common(n)]

    def count(self, size: Size) -> bool:
        """Counts a use of a size; says whether it is time to `save_counts`."""
        self._counts[size] += 1
        count = self._counts[size]
        return count & (count - 1) == 0  # 1, 2, 4, 8 ...: few writes, however long it runs

    def save_counts(self) -> None:
        if len(self._counts) > _MAX_COUNTED:  # a thousand sizes in a row must not pile up
            self._counts = Counter(dict(self._counts.most_common(_MAX_COUNTED // 2)))
        counts = {f"{height}x{width}": n for (height, width), n in list(self._counts.items())}
        self._write(_COUNTS, json.dumps(counts).encode())

    def load(self, size: Size) -> bytes | None:
        """Returns what was saved; None where there is nothing, or what there is is damaged."""
        if self._root is None:
            return None
        path = self._folder / _name(size)
        try:
            saved = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, blob = saved[:_DIGEST_BYTES], saved[_DIGEST_BYTES:]
        if hashlib.sha256(blob).digest() != digest:
            # Engines read blobs without care: a damaged one must not reach them.
            self._warn(f"{path} is damaged: it is made again")
            return None
        return blob

    def save(self, size: Size, blob: bytes) -> None:
        """Saves a blob, and deletes the oldest of all models' above `MAX_BYTES`."""
        self._write(_name(size), hashlib.sha256(blob).digest() + blob)
        if self._root is None:
            return
        with contextlib.suppress(OSError):
            found = [(path.stat(), path) for path in self._root.glob("*/*.blob")]
            kept = 0
            for stat, path in sorted(found, key=lambda one: one[0].st_mtime, reverse=True):
                kept += stat.st_size
                if kept > MAX_BYTES:
                    path.unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        if self._root is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                try:
                    file.write(content)
                    file.flush()
                    os.replace(file.name, self._folder / name)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            self._warn(
                f"compiled networks cannot be kept in {self._root}: {error.strerror}: the next "
                "start compiles them again; set FCN_CACHE_DIR to a folder that can be written"
            )

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("%s", what)


def _name(size: Size) -> str:
    return f"{size[0]}x{size[1]}.blob"
