"""Files of certificates: what is wrong with them is said, and they are followed."""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from service.errors import StartError
from service.tls import Certificates, Files, NotTls, Tls, load
from tests.authority import Authority

PASSWORD = serialization.BestAvailableEncryption(b"secret")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def encrypted(path: Path) -> None:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, PASSWORD))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda cert, key, ca: cert.unlink(), "FCN_TLS_CERT .* cannot be read: No such file"),
        (lambda cert, key, ca: key.unlink(), "FCN_TLS_KEY .* cannot be read: No such file"),
        (lambda cert, key, ca: ca.unlink(), "FCN_TLS_CLIENT_CA .* cannot be read: No such file"),
        (lambda cert, key, ca: cert.write_text("x"), "FCN_TLS_CERT .* has no certificate in it"),
        (lambda cert, key, ca: key.write_text("x"), "FCN_TLS_KEY .* has no private key in it"),
        (lambda cert, key, ca: ca.write_text("x"), "FCN_TLS_CLIENT_CA .* has no certificate"),
        (lambda cert, key, ca: cert.write_bytes(cert.read_bytes()[:200]), "cannot be used"),
        (lambda cert, key, ca: encrypted(key), "FCN_TLS_KEY .* is encrypted.*openssl pkey"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    authority: Authority, harm: Callable[[Path, Path, Path], object], words: str
) -> None:
    cert, key = authority.issue()
    load(Files(cert, key, authority.ca))
    harm(cert, key, authority.ca)
    with pytest.raises(StartError, match=words):
        load(Files(cert, key, authority.ca))


def test_a_key_of_another_certificate_is_told(authority: Authority) -> None:
    cert, _ = authority.issue("one")
    _, key = authority.issue("two")
    with pytest.raises(StartError, match="two.key' is not the key of the first certificate in"):
        load(Files(cert, key))


@pytest.mark.parametrize("year", [2049, 2050])  # where another form of dates begins
def test_the_end_of_a_certificate_is_read(authority: Authority, year: int) -> None:
    until = datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC)
    cert, key = authority.issue(until=until)
    assert load(Files(cert, key)).expires_s == until.timestamp()


@pytest.mark.parametrize(
    ("days", "words"), [(-3, "expired 3.0 days ago"), (5, "expires in 5.0 days"), (400, "")]
)
def test_a_certificate_near_its_end_is_warned_of(
    authority: Authority, caplog: pytest.LogCaptureFixture, days: int, words: str
) -> None:
    ends = datetime.now(UTC) + timedelta(days=days, minutes=1)
    Certificates(Files(*authority.issue(until=ends)))
    warned = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warned) == bool(words)
    assert all(words in line and "renew it" in line for line in warned)


def test_files_are_followed_and_bad_ones_change_nothing(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[float | None] = []
    cert, key = authority.issue()
    kept = Certificates(Files(cert, key), told=told.append)
    first = kept.current

    good = key.read_bytes()
    key.write_text("half a key")
    for _ in range(5):
        kept.look()
    assert kept.current is first
    assert told[-1] is None
    assert [r.levelname for r in caplog.records].count("ERROR") == 1
    key.write_bytes(good)
    for _ in range(2):
        kept.look()
    assert told[-1] == first.expires_s

    authority.issue(until=datetime(2090, 1, 1, tzinfo=UTC))
    kept.look()
    assert kept.current.chain == first.chain  # it may still be being written
    kept.look()
    assert told[-1] == kept.current.expires_s < first.expires_s
    assert kept.current.chain != first.chain


def shaken(server: Tls, context: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.MemoryBIO]:
    """A client that has shaken hands, and what is sent to it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    for _ in range(4):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        if data := outgoing.read():
            server.received(memoryview(data))
            incoming.write(server.owed())
    assert server.ready
    return client, incoming


def test_bytes_in_pieces_of_any_size_say_the_same(authority: Authority) -> None:
    server = Tls(load(Files(*authority.issue())).context)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    said = b""

    def sent() -> None:
        nonlocal said
        for byte in outgoing.read():
            said += server.received(memoryview(bytes([byte])))
        incoming.write(server.owed())

    while not server.ready:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        sent()
    client.write(bytes(range(256)) * 100)
    sent()
    assert (said == bytes(range(256)) * 100, server.ended) == (True, False)
    incoming.write(server.sealed([b"answer", bytes(10_000)]))
    assert client.read(20_000) + client.read(20_000) == b"answer" + bytes(10_000)
    with pytest.raises(ssl.SSLWantReadError):
        client.unwrap()
    sent()
    assert server.ended


def test_old_versions_and_what_is_no_tls_are_refused(authority: Authority) -> None:
    context = load(Files(*authority.issue())).context
    with pytest.raises(NotTls):
        Tls(context).received(memoryview(b"GET / HTTP/1.1\r\n"))
    old = authority.context()
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1_1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match="(?i)version|protocol"):
        shaken(Tls(context), old)


def test_a_client_certificate_of_another_authority_ends_the_handshake(
    authority: Authority, tmp_path: Path
) -> None:
    server = load(Files(*authority.issue(), authority.ca)).context
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    trusted = Tls(server)
    shaken(trusted, authority.context(authority.issue("client")))
    assert trusted.knows_client
    nobody = Tls(server)
    shaken(nobody, authority.context())
    assert not nobody.knows_client
    with pytest.raises(ssl.SSLError, match="(?i)verify failed"):
        shaken(Tls(server), authority.context(other.issue("client")))
