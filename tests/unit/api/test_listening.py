"""Both transports listen on every address of FCN_HOST."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import pytest

from service.errors import StartError
from service.listening import listen
from tests.conftest import need

Answer = list[tuple[int, int, int, str, tuple[Any, ...]]]


def answer(*addresses: str) -> Callable[..., Answer]:
    """Finds, as getaddrinfo does, a name with these addresses."""

    def found(host: str, port: int, **_: object) -> Answer:
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    return found


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


def heard(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


def close(listeners: list[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("addresses", [("::1", "127.0.0.1"), ("127.0.0.1", "::1", "127.0.0.1")])
def test_every_address_of_a_name(
    addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    need(has_ipv6(), "a machine with IPv6")
    monkeypatch.setattr(socket, "getaddrinfo", answer(*addresses))
    listeners = listen("localhost", 0, "FCN_HTTP_PORT")
    monkeypatch.undo()
    try:
        (port,) = {listener.getsockname()[1] for listener in listeners}
        assert len(listeners) == 2
        assert heard("127.0.0.1", port) and heard("::1", port)
    finally:
        close(listeners)


def test_several_addresses_of_one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answer("127.0.0.1", "127.0.0.2"))
    listeners = listen("here", 0, "FCN_HTTP_PORT")
    monkeypatch.undo()
    try:
        port = listeners[0].getsockname()[1]
        assert heard("127.0.0.1", port) and heard("127.0.0.2", port)
    finally:
        close(listeners)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_all_addresses_are_those_of_both_families(host: str) -> None:
    listeners = listen(host, 0, "FCN_HTTP_PORT")
    try:
        port = listeners[0].getsockname()[1]
        assert heard("127.0.0.1", port)
        assert heard("::1", port) is has_ipv6()
    finally:
        close(listeners)


def test_an_address_that_this_machine_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """localhost has ::1 in most machines' files, and IPv6 is off in many of them."""
    monkeypatch.setattr(socket, "getaddrinfo", answer("2001:db8::1", "127.0.0.1"))
    listeners = listen("localhost", 0, "FCN_HTTP_PORT")
    try:
        assert [listener.getsockname()[0] for listener in listeners] == ["127.0.0.1"]
    finally:
        close(listeners)


@pytest.mark.parametrize("addresses", [("203.0.113.9",), ("2001:db8::1", "203.0.113.9")])
def test_none_that_this_machine_has(
    addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answer(*addresses))
    with pytest.raises(StartError, match=r"cannot listen on host 'elsewhere' \(FCN_HOST\)"):
        listen("elsewhere", 0, "FCN_HTTP_PORT")


def test_a_port_that_is_taken_on_one_address_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.2", 0)) as busy:
        port = busy.getsockname()[1]
        monkeypatch.setattr(socket, "getaddrinfo", answer("127.0.0.1", "127.0.0.2"))
        with pytest.raises(StartError, match=f"here:{port}.*set FCN_HTTP_PORT to another"):
            listen("here", port, "FCN_HTTP_PORT")
        with socket.socket() as trial:  # the address that was free is free again
            assert trial.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 70, "a..b"])
def test_a_host_that_is_none_is_named(host: str) -> None:
    with pytest.raises(StartError, match=r"\(FCN_HOST\)"):
        listen(host, 0, "FCN_HTTP_PORT")
