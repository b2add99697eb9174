"""API keys: who may use the service, out of a file that is read again when it changes.

A line is `NAME KEY`; empty lines and lines that begin with `#` are passed over. The name is for the
log and the metrics. Neither HTTP nor gRPC is known here, and no message has a key in it, nor a word
that might be one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from service.changes import SettledChanges, Stamp, file_stamp, poll
from service.errors import NotAuthenticated, StartError

SETTING: Final = "FCN_API_KEYS_FILE"
MIN_KEY: Final = 16
"""Characters. A shorter one could be guessed."""
LOOK_S: Final = 1.0
"""Between looks at the file. What has changed is read once it was the same at two of them."""

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY: Final = re.compile(r"[!-~]+")
_log = logging.getLogger("fcn.keys")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever holds a key. digest: SHA-256 of the key, which itself is not kept."""

    name: str
    digest: bytes


def offered(authorization: str | None, api_key: str | None) -> list[str]:
    """Finds the keys in `Authorization: Bearer KEY` and `X-API-Key: KEY`, headers or metadata."""
    scheme, _, bearer = (authorization or "").strip().partition(" ")
    found = [bearer.strip()] if scheme.lower() == "bearer" else []
    return [*found, api_key.strip()] if api_key is not None else found


def parse(text: str, admin_key: str | None = None) -> tuple[Caller, ...]:
    """admin_key: no caller may have it, since it opens more.

    Raises: StartError, without the file's name.
    """
    callers: list[Caller] = []
    lines: dict[bytes, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise StartError(
                f"line {number} has {len(words)} words: write NAME KEY, and comments on lines of "
                "their own"
            )
        name, key = words
        if not _NAME.fullmatch(name):
            raise StartError(
                f"line {number} does not begin with a name: use 1 to 64 of A-Z a-z 0-9 . _ -, and "
                "write the key after it"
            )
        if not _KEY.fullmatch(key):
            raise StartError(
                f"the key on line {number} has characters that a header cannot carry: use letters, "
                "digits and other visible ASCII"
            )
        if len(key) < MIN_KEY:
            raise StartError(
                f"the key on line {number} has {len(key)} characters: give it {MIN_KEY} or more"
            )
        if key == admin_key:
            raise StartError(
                f"the key on line {number} is the admin key, which opens more: choose another"
            )
        digest = _digest(key)
        if digest in lines:
            raise StartError(
                f"lines {lines[digest]} and {number} have the same key: give each its own"
            )
        lines[digest] = number
        callers.append(Caller(name, digest))
    return tuple(callers)


class Keys:
    """Holds the keys in force. `watch` follows the file."""

    def __init__(
        self,
        path: Path,
        *,
        admin_key: str | None,
        rejected: Callable[[str], None],
        stale: Callable[[bool], None] = lambda stale: None,
    ) -> None:
        """rejected: the observer's, told "unauthenticated". stale: told of each read whether it
        failed, so that older keys than the file's are in force.

        Raises: StartError, also when there is no key in the file.
        """
        self._path = path
        self._admin_key = admin_key
        self._rejected = rejected
        self._stale = stale
        self._trouble = ""
        self._changes = SettledChanges(self._seen())
        self._callers = self._read()
        if not self._callers:
            raise StartError(
                f"{SETTING} {str(path)!r} has no key: write a line NAME KEY for each caller, or "
                f"unset {SETTING} to let everybody in"
            )
        _log.info("API keys of %s", _names(self._callers))

    def admit(self, keys: Iterable[str]) -> Caller:
        """Finds whose key one of them is. Raises: NotAuthenticated."""
        found = None
        for key in keys:
            digest = _digest(key)
            # Every key is compared, all of it: the time tells nothing of a guess.
            for caller in self._callers:
                if hmac.compare_digest(caller.digest, digest):
                    found = caller
        if found is None:
            raise self._refused("the API key is missing or wrong")
        return found

    def check(self, caller: Caller) -> None:
        """Judges again a caller admitted before. Raises: NotAuthenticated when the key is gone."""
        if all(caller.digest != known.digest for known in self._callers):
            raise self._refused("the API key is no longer valid")

    def look(self) -> None:
        """Looks once. A file that is wrong, or cannot be read, changes nothing.

        It is tried again at every look: no descriptor may have been free, and a key that was taken
        out of it must not stay valid for that.
        """
        if not self._changes.settled(self._seen()):
            return
        try:
            callers = self._read()
        except Exception as error:
            self._changes.again(SETTING)
            self._stale(True)
            trouble = str(error) or type(error).__name__
            if trouble != self._trouble:
                _log.error("the API keys stay as they are: %s", trouble)
            self._trouble = trouble
            return
        self._trouble = ""
        self._stale(False)
        before, self._callers = self._callers, callers
        _log.log(
            logging.INFO if callers else logging.WARNING,
            "API keys read again, now of %s; gone are %d, new are %d",
            _names(callers) or "nobody, so that nobody is let in",
            len(set(before) - set(callers)),
            len(set(callers) - set(before)),
        )

    async def watch(self) -> None:
        """Looks again and again, until cancelled."""
        # In a thread: it may be a network's file system.
        await poll(partial(asyncio.to_thread, self.look), LOOK_S, "the API keys")

    def _refused(self, why: str) -> NotAuthenticated:
        self._rejected("unauthenticated")
        return NotAuthenticated(
            f"{why}: send it in the header Authorization: Bearer KEY, or X-API-Key: KEY"
        )

    def _seen(self) -> dict[str, Stamp]:
        stamp = file_stamp(self._path)
        return {} if stamp is None else {SETTING: stamp}

    def _read(self) -> tuple[Caller, ...]:
        """Raises: StartError."""
        try:
            text = self._path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise StartError(f"{SETTING} {str(self._path)!r} cannot be read: {reason}") from error
        try:
            return parse(text, self._admin_key)
        except StartError as error:
            raise StartError(f"{SETTING} {str(self._path)!r}: {error}") from None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _names(callers: Iterable[Caller]) -> str:
    return ", ".join(sorted({caller.name for caller in callers}))
