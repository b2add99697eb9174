"""Follows files that may change while the server runs: models and API keys alike."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
Stamp = tuple[int, int, int]
"""Modification and change time in nanoseconds, and size in bytes: another when the file is."""

_log = logging.getLogger(__name__)


def stamp_of(status: os.stat_result) -> Stamp:
    # The change time, too: a file may be put in place of another with its time and its size.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size


def file_stamp(path: Path) -> Stamp | None:
    """Returns None while there is no file to be seen."""
    try:
        return stamp_of(path.stat())
    except OSError:
        return None


class SettledChanges(Generic[T]):
    """Compares what is there by name at one look with what was there at those before."""

    def __init__(self, seen: Mapping[str, T]) -> None:
        """seen: what is there and known."""
        self._acted_on = dict(seen)
        self._last = dict(seen)

    def settled(self, seen: Mapping[str, T], keep: Container[str] = ()) -> set[str]:
        """Returns the names that are new, other or gone, and were so at the last look already: what
        is still being copied waits.

        Each change is returned once. keep: names of which nothing is known at this look.
        """
        names = {
            name
            for name in {*seen, *self._acted_on, *self._last}
            if name not in keep
            and seen.get(name) == self._last.get(name) != self._acted_on.get(name)
        }
        for name in names:
            if name in seen:
                self._acted_on[name] = seen[name]
            else:
                del self._acted_on[name]
        self._last = dict(seen)
        return names

    def again(self, name: str) -> None:
        """Has a change returned at the next look, too: it could not be acted on."""
        self._acted_on.pop(name, None)


def due_again(looks: dict[str, int], failed: Iterable[str]) -> set[str]:
    """Counts the looks at which each name has failed; returns those to be tried again now: after 2,
    4, 8, ... looks, and then every 64. What was lacking, memory say, may be there by then."""
    now = {name: looks.get(name, 0) + 1 for name in failed}
    looks.clear()
    looks.update(now)
    return {name for name, n in now.items() if n > 1 and (n.bit_count() == 1 or n % 64 == 0)}


async def poll(look: Callable[[], Awaitable[None]], every_s: float, what: str) -> None:
    """Looks again and again, until cancelled. what: for the log line when a look fails."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await look()
        except Exception:
            _log.exception("looking at %s failed: trying again", what)


class Followed:
    """Reads files again when they have changed. What is wrong with them, or cannot be read, changes
    nothing, is logged once, and is tried again at every look."""

    def __init__(
        self,
        setting: str,
        *,
        seen: Callable[[], Mapping[str, object]],
        read: Callable[[], None],
        failed: Callable[[], None],
        kept: str,
        logger: logging.Logger,
    ) -> None:
        """seen: stamps them under the name of the setting. read: acts on what is there, and may
        raise. failed: told each time that it did. kept: what to log then, before the reason."""
        self._setting = setting
        self._seen = seen
        self._read = read
        self._failed = failed
        self._kept = kept
        self._logger = logger
        self._trouble = ""
        self._changes = SettledChanges(seen())

    def look(self) -> None:
        """Looks once."""
        if not self._changes.settled(self._seen()):
            return
        try:
            self._read()
        except Exception as error:
            self._changes.again(self._setting)
            self._failed()
            trouble = str(error) or type(error).__name__
            if trouble != self._trouble:
                self._logger.error("%s: %s", self._kept, trouble)
            self._trouble = trouble
        else:
            self._trouble = ""
