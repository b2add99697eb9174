"""`--api-key-file` of the commands that ask a server."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Final

_FLAG: Final = "--api-key-file"
_KEY: Final = re.compile(r"[!-~]+")


class UnusableKey(Exception):
    """The file has no key that could be sent; one line that never has the key in it."""


def add_api_key_file(parser: argparse.ArgumentParser, server: str) -> None:
    """Adds the option. server: the argument that names the server."""
    # From a file: what is in a command line, everybody on the machine can read.
    parser.add_argument(
        _FLAG,
        type=Path,
        metavar="FILE",
        help=f"file with the key that the server of {server} wants",
    )


def read_api_key(path: Path | None) -> str | None:
    """Raises: UnusableKey."""
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UnusableKey(f"{_FLAG} {path} cannot be read: {why}") from error
    if not _KEY.fullmatch(key):
        raise UnusableKey(
            f"{_FLAG} {path} is empty or has characters that cannot be sent: write the key alone "
            "into it, without spaces"
        )
    return key
