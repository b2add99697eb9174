"""Certificates for tests, made by an authority of their own."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme

HOSTS = "localhost", "127.0.0.1"


@dataclass
class Authority:
    """Issues certificates into a folder. ca: the PEM file that those who trust it have."""

    folder: Path
    name: str = "ca"

    def __post_init__(self) -> None:
        self._ca = trustme.CA()
        self.ca = self.folder / f"{self.name}.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(
        self, name: str = "server", *hosts: str, until: datetime | None = None
    ) -> tuple[Path, Path]:
        """Files of a certificate and its key, in place of those of that name."""
        issued = self._ca.issue_cert(*(hosts or HOSTS), not_after=until)
        cert, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return cert, key

    def context(self, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """Makes one that trusts this authority alone. client: shown to servers that ask."""
        context = ssl.create_default_context(cafile=self.ca)
        if client is not None:
            context.load_cert_chain(*client)
        return context
