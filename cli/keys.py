"""`fcn keys`: the file of API keys, which a running server reads again by itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.api.keys import Caller

HELP = "add, list and revoke the API keys of a server's callers"

Edit = Callable[[str], str]


class KeysError(Exception):
    """Says in one line why the file of keys is as it was."""


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    add = verbs.add_parser("add", help="make a key, and print it once")
    add.add_argument("name", help="of the caller: 1 to 64 of A-Z a-z 0-9 . _ -")
    add.add_argument(
        "--role",
        action="append",
        choices=("predict", "admin"),
        help="what the key is good for, may be given twice [predict]",
    )
    limit = "the caller's limit in place of FCN_LIMITS"
    add.add_argument("--requests-s", metavar="N", help=f"{limit}: requests a second")
    add.add_argument("--megapixels-s", metavar="N", help=f"{limit}: megapixels a second")
    add.add_argument("--in-flight", metavar="N", help=f"{limit}: requests at once")
    show = verbs.add_parser("list", help="list the callers: never their keys")
    show.add_argument("--json", action="store_true", help="write one JSON object")
    revoke = verbs.add_parser("revoke", help="take a caller's keys away")
    revoke.add_argument("name", help="of the caller")
    revoke.add_argument(
        "--but-newest", action="store_true", help="leave the last one, after a change of keys"
    )
    for verb, work in ((add, _add), (show, _list), (revoke, _revoke)):
        verb.add_argument("--file", type=Path, help="file of the keys [FCN_API_KEYS_FILE]")
        verb.set_defaults(work=work)


def run(args: argparse.Namespace) -> int:
    """Raises: KeysError, SettingsError, StartError, OSError."""
    from service.settings import load_settings

    path = args.file or load_settings().api_keys_file
    if path is None:
        raise KeysError("which file? give --file FILE, or set FCN_API_KEYS_FILE")
    work: Callable[[argparse.Namespace, Path], int] = args.work
    return work(args, path)


def _add(args: argparse.Namespace, path: Path) -> int:
    """Raises: KeysError, StartError, OSError."""
    import sys
    from datetime import UTC, datetime

    from service.api.keys import PREDICT, Caller, digest_of, line_of, new_key
    from service.api.limits import LIMIT_NAMES, Limits

    given = {name: getattr(args, name) for name in LIMIT_NAMES}
    try:
        limits = Limits.of(f"{name}={v}" for name, v in given.items() if v is not None)
    except ValueError as error:
        raise KeysError(str(error)) from None
    key = new_key()
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    roles = frozenset(args.role or [PREDICT])
    line = line_of(Caller(args.name, digest_of(key), roles, limits, created))
    _parsed(Path("the new key"), line)

    def edit(text: str) -> str:
        return f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n"

    _rewrite(path, edit)
    print(key)
    print(
        f"fcn: this is the key of {args.name}, shown this once: {path} has only its digest",
        file=sys.stderr,
    )
    return 0


def _list(args: argparse.Namespace, path: Path) -> int:
    """Raises: KeysError, StartError, OSError."""
    import json

    callers = _parsed(path, _text(path))
    rows: list[dict[str, Any]] = [
        {
            "name": caller.name,
            "roles": sorted(caller.roles),
            "limits": str(caller.limits),
            "created": caller.created,
            "digest": f"sha256:{caller.digest.hex()[:8]}",
            "plain": caller.plain,
        }
        for caller in callers
    ]
    if args.json:
        print(json.dumps({"keys": rows}))
        return 0
    for row in rows:
        words = [row["name"], ",".join(row["roles"]), row["limits"], row["created"], row["digest"]]
        words += ["in plain text: fcn keys add makes one in its place"] if row["plain"] else []
        print("  ".join(word for word in words if word))
    return 0


def _revoke(args: argparse.Namespace, path: Path) -> int:
    """Raises: KeysError, StartError, OSError."""
    import sys

    gone = 0

    def edit(text: str) -> str:
        nonlocal gone
        lines = text.split("\n")
        of_name = [n for n, line in enumerate(lines) if line.split()[:1] == [args.name]]
        of_name = of_name[:-1] if args.but_newest else of_name
        if not of_name:
            what = "no other key" if args.but_newest else "no key"
            raise KeysError(f"{path} has {what} of {args.name!r}: fcn keys list shows the names")
        gone = len(of_name)
        return "\n".join(line for n, line in enumerate(lines) if n not in of_name)

    left = _rewrite(path, edit)
    print(f"fcn: took away {gone} of {args.name}'s keys", file=sys.stderr)
    if not left:
        print(f"fcn: {path} has no key now: a running server lets nobody in", file=sys.stderr)
    return 0


def _parsed(path: Path, text: str) -> tuple[Caller, ...]:
    """Raises: KeysError with the line that is wrong."""
    from service.api.keys import parse
    from service.errors import StartError

    try:
        return parse(text)
    except StartError as error:
        raise KeysError(f"{path}: {error}") from None


def _text(path: Path) -> str:
    """Raises: KeysError, OSError."""
    from service.api.keys import is_for_everybody

    if is_for_everybody(path):
        raise KeysError(
            f"{path} can be read by every user of this machine, who may have its keys: "
            f"chmod 600 {path}, or 640 with the server's group, then give callers new keys"
        )
    try:
        return path.read_bytes().decode("utf-8-sig")  # with the ends of lines that it has
    except UnicodeDecodeError:
        raise KeysError(f"{path} is not UTF-8 text") from None


def _rewrite(path: Path, edit: Edit) -> bool:
    """Changes the file in one step: whoever reads it sees the old or the new one, whole.

    Comments, empty lines and their order stay. Returns whether a key is in it.

    Raises: KeysError, OSError; the file is as it was.
    """
    import os
    import secrets

    path = path.resolve()  # a link stays one
    with _alone(path.parent):
        old = path.stat() if path.exists() else None
        before = "" if old is None else _text(path)
        _parsed(path, before)
        after = edit(before)
        left = bool(_parsed(path, after))
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        mode = 0o600 if old is None else old.st_mode & 0o770
        try:
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                if old is not None and hasattr(os, "fchown"):
                    if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                        os.fchown(file.fileno(), old.st_uid, old.st_gid)
                    os.fchmod(file.fileno(), mode)
                file.write(after.encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    return left


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one `fcn keys` at a time change files of a folder, where the system has such locks."""
    import os

    try:
        import fcntl
    except ImportError:
        yield
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
