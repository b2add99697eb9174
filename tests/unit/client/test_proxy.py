"""A proxy that the environment names is asked for other machines, and never for this one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fcn_client import FcnError, InvalidInput, RetryPolicy
from fcn_client.request import is_this_machine
from tests.drawing import png, street
from tests.unit.client.clients import EITHER, Client
from tests.unit.client.fakes import LABELS, Script, grpc_server, http_server

IMAGE = png(street())
NAMES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
OTHERS = ("no_proxy", "no_grpc_proxy")


@contextmanager
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """One that refuses everything. Gives the first lines that it was sent."""
    for name in (*NAMES, *OTHERS):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(4096).partition(b"\r\n")[0])
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        for name in NAMES:
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield asked
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@EITHER
@pytest.mark.parametrize("server", [http_server, grpc_server], ids=["rest", "grpc"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_is_asked_directly(
    host: str, server: type, client_of: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        server(Script()) as url,
        proxy(monkeypatch) as asked,
        client_of(url.replace("127.0.0.1", host)) as client,
    ):
        assert (client.segment(IMAGE).value == LABELS).all()
    assert asked == []


@EITHER
@pytest.mark.parametrize("url", ["http://fcn.example:8000", "grpc://fcn.example:8001"])
def test_another_machine_through_the_proxy(
    url: str, client_of: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(monkeypatch) as asked:
        retry = RetryPolicy(max_attempts=1)
        with client_of(url, retry=retry, timeout_s=5) as client, pytest.raises(FcnError):
            client.segment(IMAGE)
        assert asked and b"fcn.example:80" in asked[0]


@EITHER
@pytest.mark.parametrize("value", ["gopher://proxy:1", "http://proxy:port"])
def test_a_proxy_that_cannot_be_used_is_named(
    value: str, client_of: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(InvalidInput, match="the proxy that the environment names cannot be used"):
        client_of("http://fcn.example:8000")
    with http_server(Script()) as url, client_of(url) as client:
        assert (client.segment(IMAGE).value == LABELS).all()


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("LOCALHOST.", True),
        ("fcn.localhost", True),
        ("127.0.0.53", True),
        ("[::1]", True),
        ("[::ffff:127.0.0.1]", True),
        ("0.0.0.0", True),
        ("localhost.example", False),
        ("10.0.0.1", False),
        ("[fd00::1]", False),
    ],
)
def test_addresses_of_this_machine(host: str, here: bool) -> None:
    assert is_this_machine(f"http://{host}:8000") is here
    assert is_this_machine(f"grpcs://{host}") is here
