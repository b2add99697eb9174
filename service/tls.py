"""Encrypts both transports: one certificate, read again when its files change; TLS of a connection.

gRPC has TLS of its own, and gets the files. REST runs OpenSSL over the bytes of each connection
itself: so its bounds see what is on the wire, handshakes and all, and nothing waits in a layer that
they do not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from service.changes import Followed, Stamp, file_stamp, poll
from service.errors import StartError

CERT, KEY, CLIENT_CA = "FCN_TLS_CERT", "FCN_TLS_KEY", "FCN_TLS_CLIENT_CA"
LOOK_S: Final = 1.0
"""Between looks at the files. What has changed is read once it was the same at two of them."""
WARN_DAYS: Final = 14
_HANDSHAKE: Final = 0x16
"""Begins the first record of TLS, and no request. Source: RFC 8446, section 5.1."""
_READ_BYTES: Final = 64 * 1024
_log = logging.getLogger("fcn.tls")


@dataclass(frozen=True)
class Files:
    """Names what a server's TLS is made of, each PEM. client_ca: None asks nobody for one."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class Certificate:
    """Holds what was in the files at one time, checked by OpenSSL. expires_s: of the first
    certificate, since the epoch."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    expires_s: float


class Certificates:
    """Holds the certificate in force. `watch` follows the files; connections keep what they have.

    current: the certificate for new connections.
    """

    def __init__(
        self,
        files: Files,
        *,
        told: Callable[[float | None], None] = lambda expires_s: None,
    ) -> None:
        """told: when the certificate in force expires, at each read; None where the files cannot be
        used, so that an older one stays in force. Raises: StartError."""
        self._files = files
        self._told = told
        self._followed = Followed(
            CERT,
            seen=self._seen,
            read=self._renew,
            failed=partial(told, None),
            kept="the TLS certificate stays as it is",
            logger=_log,
        )
        self.current = self._read()

    @property
    def asks_clients(self) -> bool:
        """Says whether callers need a certificate."""
        return self._files.client_ca is not None

    def accept(self) -> Tls:
        """Begins TLS of a new connection."""
        return Tls(self.current.context)

    def look(self) -> None:
        """Looks once, see `Followed`."""
        self._followed.look()

    def _renew(self) -> None:
        """Raises: StartError."""
        self.current = self._read()
        _log.info("TLS certificate read again, valid until %s", _date(self.current.expires_s))

    async def watch(self) -> None:
        """Looks again and again, until cancelled."""
        await poll(partial(asyncio.to_thread, self.look), LOOK_S, "the TLS certificate")

    def _seen(self) -> dict[str, tuple[Stamp | None, ...]]:
        """Stamps all files together: a new certificate is of no use before its key is there."""
        files = self._files
        paths = [path for path in (files.cert, files.key, files.client_ca) if path is not None]
        return {CERT: tuple(file_stamp(path) for path in paths)}

    def _read(self) -> Certificate:
        """Raises: StartError."""
        before = self._seen()
        found = load(self._files)
        if self._seen() != before:
            raise StartError("the files of the TLS certificate change while they are read")
        self._told(found.expires_s)
        days = (found.expires_s - time.time()) / 86400
        if days < WARN_DAYS:
            _log.warning(
                "the TLS certificate %s %s: renew it, no restart is needed",
                self._files.cert,
                f"expired {-days:.1f} days ago" if days < 0 else f"expires in {days:.1f} days",
            )
        return found


def load(files: Files) -> Certificate:
    """Reads and checks the files. Raises: StartError, which says what to do."""
    chain, key = _bytes(CERT, files.cert), _bytes(KEY, files.key)
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        raise StartError(f"{CERT} {str(files.cert)!r} has no certificate in it: give a PEM file")
    if b"PRIVATE KEY-----" not in key:
        raise StartError(f"{KEY} {str(files.key)!r} has no private key in it: give a PEM file")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])

    def password() -> str:
        raise StartError(
            f"{KEY} {str(files.key)!r} is encrypted, and nobody is here to give its password: "
            "write it without one (openssl pkey -in FILE -out NEW) where only the server can read"
        )

    try:
        context.load_cert_chain(files.cert, files.key, password)
        expires_s = _expires_s(chain)
    except (ssl.SSLError, ValueError, LookupError) as error:
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            raise StartError(
                f"{KEY} {str(files.key)!r} is not the key of the first certificate in {CERT} "
                f"{str(files.cert)!r}: give those made together"
            ) from error
        raise StartError(
            f"{CERT} {str(files.cert)!r} and {KEY} {str(files.key)!r} cannot be used: {error}"
        ) from error
    client_ca = None
    if files.client_ca is not None:
        client_ca = _bytes(CLIENT_CA, files.client_ca)
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, ValueError) as error:
            raise StartError(
                f"{CLIENT_CA} {str(files.client_ca)!r} has no certificate that can be used: give a "
                "PEM file with that of the authority which signs those of clients"
            ) from error
        # Who has none still gets the probes, and an answer which says what is missing.
        context.verify_mode = ssl.CERT_OPTIONAL
    return Certificate(chain, key, client_ca, context, expires_s)


class Tls:
    """Runs TLS of one connection over the bytes that came and that are to be sent.

    ready: the handshake is done. begun: whether a byte of it came. ended: the peer says that it
    sends no more.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._in, self._out, server_side=True)
        self.ready = False
        self.begun = False
        self.ended = False

    def received(self, data: memoryview) -> bytes:
        """Takes what came, and returns what it says. Raises: ssl.SSLError, NotTls."""
        if not self.begun and data[0] != _HANDSHAKE:
            raise NotTls
        self.begun = True
        self._in.write(data)
        parts = []
        try:
            if not self.ready:
                self._object.do_handshake()
                self.ready = True
            while part := self._object.read(_READ_BYTES):
                parts.append(part)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return b"".join(parts)

    def sealed(self, parts: Iterable[bytes]) -> bytes:
        """Encrypts what is to be sent; the handshake must be done."""
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[self._object.write(view) :]
        return self._out.read()

    def owed(self) -> bytes:
        """Takes what TLS itself has to send: of the handshake, alerts."""
        return self._out.read()

    def closing(self) -> bytes:
        """Returns the last bytes, which tell the peer that nothing was cut off."""
        if self.ready:
            with contextlib.suppress(ssl.SSLError):  # the peer has not said so, and nobody waits
                self._object.unwrap()
        return self._out.read()

    @property
    def knows_client(self) -> bool:
        """Says whether the peer has shown a certificate, which was verified."""
        return self._object.getpeercert(binary_form=True) is not None


class NotTls(Exception):
    """Tells of a peer who does not speak TLS."""


def _bytes(setting: str, path: Path) -> bytes:
    """Raises: StartError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"{setting} {str(path)!r} cannot be read: {error.strerror}") from error


def _expires_s(chain: bytes) -> float:
    """Finds the end of the first certificate's validity. The ssl module tells only of a peer's.

    Source: RFC 5280, section 4.1. Raises: ValueError, IndexError.
    """
    begin, end = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
    pem = begin + chain.split(begin)[1].split(end)[0] + end
    [(_, certificate)] = _elements(ssl.PEM_cert_to_DER_cert(pem.decode("ascii")))
    fields = [value for tag, value in _elements(_elements(certificate)[0][1]) if tag != 0xA0]
    _, (tag, text) = _elements(fields[3])  # behind serial number, signature and issuer
    style = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode("ascii"), style).replace(tzinfo=UTC).timestamp()


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Splits DER into tags and values. Source: X.690, section 8.1."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            width = length & 0x7F
            length, at = int.from_bytes(der[at : at + width], "big"), at + width
        found.append((tag, der[at : at + length]))
        at += length
    return found


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
