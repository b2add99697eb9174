"""Reads the certificates that a client trusts and shows."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict
from urllib.parse import urlsplit

from fcn_client.errors import InvalidInput

_HINTS: Final = (
    (
        ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed"),
        "its certificate is not trusted here: give the file of its authority as ca_file (--ca), "
        "and ask for a name that the certificate has",
    ),
    (
        ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"),
        "it does not speak TLS there: ask for http:// or grpc://",
    ),
    (
        ("ALERT_", "CERTIFICATE_REQUIRED"),
        "it does not take the client certificate: give one of an authority that it trusts as "
        "cert_file and key_file (--cert, --key)",
    ),
)


class TlsFiles(TypedDict, total=False):
    """Lists PEM files, for servers with TLS. ca_file: authorities to trust, in place of those that
    are known on this machine. cert_file, key_file: shown to a server that asks (mTLS)."""

    ca_file: Path | str | None
    cert_file: Path | str | None
    key_file: Path | str | None


@dataclass(frozen=True, slots=True)
class Trust:
    """Holds what the files have, None where there is none. gRPC takes the bytes."""

    files: TlsFiles
    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = None

    def load_into(self, context: ssl.SSLContext) -> None:
        """Has it trust and show what the files have. Raises: InvalidInput."""
        files = self.files
        ca, cert, key = files.get("ca_file"), files.get("cert_file"), files.get("key_file")
        if ca is not None:
            try:
                context.load_verify_locations(ca)
            except (OSError, ValueError) as error:
                raise InvalidInput(f"ca_file {ca} has no PEM certificate: {error}") from error
        if cert is not None and key is not None:

            def password() -> str:
                raise InvalidInput(
                    f"key_file {key} is encrypted: write it without a password (openssl pkey)"
                )

            try:
                context.load_cert_chain(cert, key, password)
            except (OSError, ValueError) as error:
                raise InvalidInput(
                    f"cert_file {cert} and key_file {key} are no PEM certificate with its key: "
                    f"{error}"
                ) from error


def trust_of(url: str, files: TlsFiles) -> Trust:
    """Reads the files. Raises: InvalidInput."""
    given = {name: path for name, path in files.items() if path is not None}
    if not given:
        return Trust({})
    if urlsplit(url).scheme not in ("https", "grpcs"):
        raise InvalidInput(f"{', '.join(given)}: for https:// and grpcs://, and {url} has no TLS")
    if ("cert_file" in given) is not ("key_file" in given):
        raise InvalidInput("cert_file and key_file belong together: give both, or none")
    found = {}
    for name, path in given.items():
        try:
            found[name.removesuffix("_file")] = Path(str(path)).read_bytes()
        except OSError as error:
            raise InvalidInput(f"{name} {path} cannot be read: {error.strerror}") from error
    trust = Trust(files, **found)
    trust.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    return trust


def tls_hint(reason: str) -> str | None:
    """Says what to do about a handshake that failed for `reason`; None where it did not."""
    upper = reason.upper()
    for signs, hint in _HINTS:
        if any(sign.upper() in upper for sign in signs) and ("SSL" in upper or "HOSTNAME" in upper):
            return hint
    return None
