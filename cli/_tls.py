"""Adds `--ca`, `--cert` and `--key` to the commands that ask a server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the client is not everybody's
    from fcn_client.trust import TlsFiles


def add_tls(parser: argparse.ArgumentParser, server: str) -> None:
    """Adds the options. server: the argument that names the server."""
    for flag, text in (
        ("--ca", f"authorities to trust for a {server} of https:// or grpcs://, PEM"),
        ("--cert", "certificate to show to a server that asks for one, PEM"),
        ("--key", "private key of --cert, PEM, without a password"),
    ):
        parser.add_argument(flag, type=Path, metavar="FILE", help=text)


def tls_of(args: argparse.Namespace) -> TlsFiles:
    """Returns what was given."""
    return {"ca_file": args.ca, "cert_file": args.cert, "key_file": args.key}
