"""API keys: who may use the service, out of a file that is read again when it changes.

A line is `NAME KEY [FIELD=VALUE ...]`; empty lines and lines that begin with `#` are passed over.
KEY is the key itself or, as `fcn keys add` writes it, `sha256:` and its digest. The fields are
`role`, which is `predict` unless it says `admin` or `predict,admin`, the limits of
`service.api.limits`, and `created`. The name is for the log and the metrics. Neither HTTP nor gRPC
is known here, and no message has a key in it, nor a word that might be one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from service.api.limits import NO_LIMITS, Guesses, Limits
from service.changes import Followed, Stamp, file_stamp, poll
from service.errors import LimitExceeded, NotAllowed, NotAuthenticated, StartError

SETTING: Final = "FCN_API_KEYS_FILE"
PREDICT: Final = "predict"
ADMIN: Final = "admin"
ROLES: Final = (PREDICT, ADMIN)
MIN_KEY: Final = 16
"""Characters. A shorter one could be guessed."""
UNGUESSABLE: Final = 32
"""Characters from which a key is judged however often its address was wrong: nobody finds one by
trying, and nobody who shares an address with somebody who tries is shut out."""
LOOK_S: Final = 1.0
"""Between looks at the file. What has changed is read once it was the same at two of them."""

_DIGEST: Final = "sha256:"
_FIELD: Final = re.compile(r"[a-z_]+=[!-~]+")
_CREATED: Final = re.compile(r"[0-9TZ:.+-]{1,40}")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY: Final = re.compile(r"[!-~]+")
_log = logging.getLogger("fcn.keys")


@dataclass(frozen=True, slots=True)
class Caller:
    """Names who holds a key. digest: SHA-256 of the key, which is not kept. plain: whether the file
    has the key itself. created: a date, as the file has it."""

    name: str
    digest: bytes
    roles: frozenset[str] = frozenset({PREDICT})
    limits: Limits = NO_LIMITS
    created: str = ""
    plain: bool = False


ANYBODY: Final = Caller("", b"")
"""Asks where nobody is asked for a key."""


def new_key() -> str:
    """Makes one of 256 random bits, 47 characters, that scanners for secrets can tell by its
    beginning."""
    return f"fcn_{secrets.token_urlsafe(32)}"


def line_of(caller: Caller) -> str:
    """Prints a caller as the file has it, with the digest of the key."""
    words = [caller.name, _DIGEST + caller.digest.hex()]
    words.append(f"role={','.join(role for role in ROLES if role in caller.roles)}")
    words += [str(caller.limits)] if caller.limits != NO_LIMITS else []
    words += [f"created={caller.created}"] if caller.created else []
    return " ".join(words)


def offered(authorization: str | None, api_key: str | None) -> list[str]:
    """Finds the keys in `Authorization: Bearer KEY` and `X-API-Key: KEY`, headers or metadata."""
    scheme, _, bearer = (authorization or "").strip().partition(" ")
    found = [bearer.strip()] if scheme.lower() == "bearer" else []
    return [*found, api_key.strip()] if api_key is not None else found


def parse(text: str, admin_key: str | None = None) -> tuple[Caller, ...]:
    """Reads callers and their keys. admin_key: no caller may have it, since it opens more.

    Raises: StartError, without the file's name.
    """
    callers: list[Caller] = []
    operator = None if admin_key is None else digest_of(admin_key)
    lines: dict[bytes, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 2 or not all(_FIELD.fullmatch(word) for word in words[2:]):
            raise StartError(
                f"line {number} has {len(words)} words: write NAME KEY, then fields such as "
                "role=admin, and comments on lines of their own"
            )
        name, key = words[:2]
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
        plain, digest = not key.startswith(_DIGEST), digest_of(key)
        if not plain:
            try:
                digest = bytes.fromhex(key.removeprefix(_DIGEST))
            except ValueError:
                digest = b""
            if len(digest) != hashlib.sha256().digest_size:
                raise StartError(
                    f"the digest on line {number} is not whole: it is {_DIGEST} and 64 hexadecimal "
                    "digits, as fcn keys add writes it"
                )
        if digest == operator:
            raise StartError(
                f"the key on line {number} is the admin key, which opens more: choose another"
            )
        if digest in lines:
            raise StartError(
                f"lines {lines[digest]} and {number} have the same key: give each its own"
            )
        lines[digest] = number
        try:
            callers.append(Caller(name, digest, *_fields(words[2:]), plain))
        except ValueError as error:
            raise StartError(f"the fields on line {number}: {error}") from None
    return tuple(callers)


def _fields(words: Iterable[str]) -> tuple[frozenset[str], Limits, str]:
    """Reads roles, limits and date. Raises: ValueError, which repeats no word."""
    roles, created, limits = frozenset({PREDICT}), "", []
    for word in words:
        name, _, value = word.partition("=")
        if name == "role":
            roles = frozenset(value.split(","))
            if not roles <= set(ROLES):
                raise ValueError("role is predict, admin or predict,admin")
        elif name == "created":
            if not _CREATED.fullmatch(value):
                raise ValueError("created is a date, as 2026-11-30")
            created = value
        else:
            limits.append(word)
    try:
        return roles, Limits.of(limits), created
    except ValueError as error:
        raise ValueError(f"of role, created and limits; {error}") from None


class Keys:
    """Holds the keys in force. `watch` follows the file.

    required: whether callers need a key to predict.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        admin_key: str | None,
        rejected: Callable[[str], None],
        stale: Callable[[bool], None] = lambda stale: None,
        wrong: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """path: None lets everybody in, to predict. admin_key: the operator's, in no file of keys.
        rejected: the observer's, told "unauthenticated" or "guesses". stale: told of each read
        whether it failed, so that older keys than the file's are in force. wrong: told of each
        wrong key.

        Raises: StartError, also when there is no key in the file.
        """
        self._path = path
        self.required = path is not None
        self._admin_key = admin_key
        self._operator = () if admin_key is None else (_operator(admin_key),)
        self._rejected = rejected
        self._stale = stale
        self._wrong = wrong
        self._guesses = Guesses(clock)
        self._followed = Followed(
            SETTING,
            seen=self._seen,
            read=self._renew,
            failed=partial(stale, True),
            kept="the API keys stay as they are",
            logger=_log,
        )
        self._callers = self._read()
        if path is None:
            return
        if not self._callers:
            raise StartError(
                f"{SETTING} {str(path)!r} has no key: write a line NAME KEY for each caller, or "
                f"unset {SETTING} to let everybody in"
            )
        _log.info("API keys of %s", _names(self._callers))
        if any(caller.plain for caller in self._callers) and is_for_everybody(path):
            _log.warning("%s can be read by every user of this machine: chmod o-rwx it", path)

    @property
    def callers(self) -> tuple[Caller, ...]:
        """Lists those in the file."""
        return self._callers

    def admit(self, keys: Iterable[str], *, role: str = PREDICT, address: str = "") -> Caller:
        """Finds whose key one of them is. address: where it came from.

        Raises: NotAuthenticated; NotAllowed where nobody has the role; LimitExceeded when too many
        wrong keys came from the address.
        """
        holders = (*self._callers, *self._operator)
        if role == ADMIN and not any(role in caller.roles for caller in holders):
            raise NotAllowed(
                "this server has no admin key, so nobody may list, load or unload its models: set "
                "FCN_ADMIN_KEY or FCN_ADMIN_KEY_FILE and start it again, or give a key of "
                "FCN_API_KEYS_FILE the role admin"
            )
        wait_s = self._guesses.wait_s(address)
        found: Caller | None = None
        wrong = 0
        for key in keys:
            if not key or (wait_s and len(key) < UNGUESSABLE):
                continue
            digest, known = digest_of(key), False
            # Every key is compared, all of it: the time tells nothing of a guess.
            for caller in holders:
                if hmac.compare_digest(caller.digest, digest):
                    known = True
                    if role in caller.roles:
                        found = caller
            wrong += not known
        if found is not None:
            return found
        for _ in range(wrong):
            self._guesses.wrong(address)
            self._wrong()
        if wait_s and any(keys):
            self._rejected("guesses")
            raise LimitExceeded(
                f"too many wrong keys came from this address: use one of {UNGUESSABLE} or more "
                "characters, which is judged all the same, or wait",
                wait_s,
                "guesses",
            )
        what = "admin" if role == ADMIN else "API"
        raise self._refused(f"the {what} key is missing or wrong")

    def check(self, caller: Caller) -> None:
        """Judges again a caller admitted before. Raises: NotAuthenticated when the key is gone."""
        if not any(
            caller.digest == known.digest and PREDICT in known.roles for known in self._callers
        ):
            raise self._refused("the API key is no longer valid")

    def look(self) -> None:
        """Looks once, see `Followed`.

        No descriptor may have been free at the look before, and a key that was taken out of the
        file must not stay valid for that.
        """
        self._followed.look()

    def _renew(self) -> None:
        """Raises: StartError."""
        callers = self._read()
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
        """Looks again and again, until cancelled; not at all without a file."""
        if self._path is None:
            return
        # In a thread: it may be a network's file system.
        await poll(partial(asyncio.to_thread, self.look), LOOK_S, "the API keys")

    def _refused(self, why: str) -> NotAuthenticated:
        self._rejected("unauthenticated")
        return NotAuthenticated(
            f"{why}: send it in the header Authorization: Bearer KEY, or X-API-Key: KEY"
        )

    def _seen(self) -> dict[str, Stamp]:
        stamp = None if self._path is None else file_stamp(self._path)
        return {} if stamp is None else {SETTING: stamp}

    def _read(self) -> tuple[Caller, ...]:
        """Raises: StartError."""
        if self._path is None:
            return ()
        try:
            text = self._path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise StartError(f"{SETTING} {str(self._path)!r} cannot be read: {reason}") from error
        try:
            return parse(text, self._admin_key)
        except StartError as error:
            raise StartError(f"{SETTING} {str(self._path)!r}: {error}") from None


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _operator(admin_key: str) -> Caller:
    return Caller("", digest_of(admin_key), frozenset({ADMIN}))


def is_for_everybody(path: Path) -> bool:
    """Tells whether every user of the machine may read a file."""
    return os.name == "posix" and bool(path.stat().st_mode & stat.S_IROTH)


def _names(callers: Iterable[Caller]) -> str:
    return ", ".join(sorted({caller.name for caller in callers}))
