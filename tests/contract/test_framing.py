"""Where a request ends: never elsewhere than a proxy in front may think, on any path.

Each message has a second request in it, which a server that sees the end too early would answer,
too. The test closes its side, so that the server ends the connection when it has answered.
"""

from __future__ import annotations

import re
import socket
import time

import pytest

from tests.drawing import png, street
from tests.link import Link
from tests.serving import Server

PNG = png(street(40, 56))
INNER = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(INNER)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ONE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER)
TARGETS = [b"POST /segment", b"GET /v1/models", b"POST /v2/models/tiny/infer", b"GET /metrics"]
Message = tuple[bytes, bytes]
"""The headers between Host and the empty line, and what comes behind it."""


def upgrade(protocol: bytes, framing: bytes = LENGTH, body: bytes = INNER) -> Message:
    return b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n%b" % (protocol, framing), body


ANSWERED: dict[str, Message] = {
    "upgrade to h2c": upgrade(b"h2c"),
    "upgrade to h2c, in chunks": upgrade(b"h2c", CHUNKED, ONE_CHUNK),
    "upgrade to websocket": upgrade(b"websocket", b"Sec-WebSocket-Version: 13\r\n" + LENGTH),
    "upgrade to TLS": upgrade(b"TLS/1.0, HTTP/2.0"),
    "upgrade twice": upgrade(b"h2c\r\nUpgrade: websocket"),
    "upgrade unknown": upgrade(b"x"),
    "chunk with an extension": (CHUNKED, ONE_CHUNK.replace(b"\r\n", b";a=b;c\r\n", 1)),
    "chunk with a trailer": (CHUNKED, ONE_CHUNK[:-2] + b"X-Trailer: 1\r\n\r\n"),
    "framing in a trailer": (CHUNKED, ONE_CHUNK[:-2] + b"Content-Length: 100\r\n\r\n"),
    "length with spaces around": (b"Content-Length:   %d \t\r\n" % len(INNER), INNER),
    "the same length twice": (LENGTH * 2, INNER),
    "expectation": (b"Expect: 100-continue\r\n" + LENGTH, INNER),
}
REFUSED: dict[str, Message] = {
    "chunked and a length": (CHUNKED + LENGTH, ONE_CHUNK),
    "a length and chunked": (b"Content-Length: 0\r\n" + CHUNKED, ONE_CHUNK),
    "chunked and no length": (CHUNKED + b"Content-Length: \r\n", ONE_CHUNK),
    "two lengths": (b"Content-Length: 0\r\n" + LENGTH, INNER),
    "two lengths in one": (b"Content-Length: 0, %d\r\n" % len(INNER), INNER),
    "length with a sign": (b"Content-Length: +%d\r\n" % len(INNER), INNER),
    "length below zero": (b"Content-Length: -1\r\n", INNER),
    "length in hex": (b"Content-Length: 0x24\r\n", INNER),
    "length with a space in it": (b"Content-Length: 3 6\r\n", INNER),
    "length folded": (b"Content-Length:\r\n %d\r\n" % len(INNER), INNER),
    "chunked folded": (b"Transfer-Encoding:\r\n chunked\r\n", ONE_CHUNK),
    "chunked folded by a tab": (b"Transfer-Encoding:\r\n\tchunked\r\n", ONE_CHUNK),
    "header folded": (b"X-Long: a\r\n Transfer-Encoding: chunked\r\n" + LENGTH, INNER),
    "space before the colon": (b"Transfer-Encoding : chunked\r\n", ONE_CHUNK),
    "space before the length's colon": (b"Content-Length : 0\r\n", INNER),
    "space before a header": (b" Transfer-Encoding: chunked\r\n", ONE_CHUNK),
    "header without a colon": (b"Content-Length\r\n", INNER),
    "header with LF alone": (b"Content-Length: %d\n" % len(INNER), INNER),
    "header behind a LF": (b"X: a\nTransfer-Encoding: chunked\r\n", ONE_CHUNK),
    "header behind a CR": (b"X: a\rTransfer-Encoding: chunked\r\n", ONE_CHUNK),
    "NUL in a header": (b"X: a\0\r\n" + LENGTH, INNER),
    "chunked twice": (CHUNKED * 2, ONE_CHUNK),
    "chunked and identity": (b"Transfer-Encoding: chunked, identity\r\n", ONE_CHUNK),
    "identity": (b"Transfer-Encoding: identity\r\n" + LENGTH, INNER),
    "not quite chunked": (b"Transfer-Encoding: xchunked\r\n", ONE_CHUNK),
    "quoted": (b'Transfer-Encoding: "chunked"\r\n', ONE_CHUNK),
    "vertical tab": (b"Transfer-Encoding: \x0bchunked\r\n", ONE_CHUNK),
    "a head of 17 KB": (b"X: %b\r\n" % (b"a" * 17000) + LENGTH, INNER),
    "101 headers": (b"X: a\r\n" * 98 + LENGTH, INNER),
    "length of 30 digits": (b"Content-Length: 0%b\r\n" % (b"1" * 29), INNER),
    "length with a comma": (b"Content-Length: %d,\r\n" % len(INNER), INNER),
    "another host": (b"Host: y\r\n" + LENGTH, INNER),
    "chunk with LF alone": (CHUNKED, ONE_CHUNK.replace(b"\r\n", b"\n", 1)),
    "chunk's extension with LF": (CHUNKED, ONE_CHUNK.replace(b"\r\n", b";a\nb\r\n", 1)),
    "chunk's extension with CR": (CHUNKED, ONE_CHUNK.replace(b"\r\n", b";a\rb\r\n", 1)),
    "chunk's size in words": (CHUNKED, b"0x24\r\n" + INNER + b"\r\n0\r\n\r\n"),
    "chunk's size below zero": (CHUNKED, b"-1\r\n" + INNER + b"\r\n0\r\n\r\n"),
    "chunk's size too large": (CHUNKED, b"f" * 21 + b"\r\n" + INNER),
    "chunk longer than it says": (CHUNKED, b"1\r\n" + INNER + b"\r\n0\r\n\r\n"),
    "chunk's size without an end": (CHUNKED, b"0" * 300),
    "chunks of a byte without number": (CHUNKED, b"1\r\na\r\n" * 3000),
    "trailer that is none": (CHUNKED, b"0\r\nno colon\r\n\r\n"),
    "trailers of 5 KB": (CHUNKED, b"0\r\nX: %b\r\n\r\n" % (b"a" * 5000)),
    "trailers without an end": (CHUNKED, b"0\r\n" + b"X: a\r\n" * 1000),
    "trailers with LF alone": (CHUNKED, b"0\r\n\n" + INNER),
    "trailer with LF alone": (CHUNKED, b"0\r\nX: a\n\r\n" + INNER),
}


def answers(server: Server, head: bytes, behind: bytes = b"") -> list[int]:
    """The statuses of all answers until the connection ends. behind: sent in a later packet."""
    with Link(server) as link:
        link.send(head)
        if behind:
            time.sleep(0.02)
        try:
            link.send(behind)
            link.socket.shutdown(socket.SHUT_WR)
        except OSError:  # it ended the connection already
            pass
        data = b""
        try:
            while part := link.socket.recv(65536):
                data += part
        except ConnectionResetError:
            pass
    found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]
    return [status for status in found if status != 100]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.decode())
@pytest.mark.parametrize("message", ANSWERED.values(), ids=ANSWERED)
def test_a_body_is_no_request(server: Server, target: bytes, message: Message) -> None:
    headers, body = message
    head = target + b" HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n" + headers + b"\r\n"
    (status,) = answers(server, head, body)
    # The body is no image, and no JSON.
    assert status == {b"POST /segment": 415, b"POST /v2/models/tiny/infer": 400}.get(target, 200)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.decode())
@pytest.mark.parametrize("message", REFUSED.values(), ids=REFUSED)
def test_what_a_proxy_may_read_otherwise(server: Server, target: bytes, message: Message) -> None:
    headers, body = message
    head = target + b" HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n" + headers + b"\r\n"
    (status,) = answers(server, head, body)
    if headers != CHUNKED:
        assert status == 400
    else:  # the head was in order, and may have been answered before the body came
        assert status == 400 or target.startswith(b"GET")


@pytest.mark.parametrize(
    "message",
    [
        b"GET /livez HTTP/1.1\r\n\r\n",  # no Host
        b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x/y\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a@b\r\n\r\n",
        b"GET /livez HTTP/1.1\nHost: x\n\n",
        b"\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET  /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"POST /segment HTTP/1.0\r\nHost: x\r\n" + CHUNKED + b"\r\n" + ONE_CHUNK,
    ],
)
def test_what_is_no_request_of_http_1(server: Server, message: bytes) -> None:
    assert answers(server, message) == [400]


@pytest.mark.parametrize("target", [b"http://x/livez", b"*", b"x:443", b"//livez", b"/livez/."])
def test_a_target_that_is_no_path(server: Server, target: bytes) -> None:
    head = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target
    assert answers(server, head) == [404]


@pytest.mark.parametrize("end", [b" HTTP/1.1\r\nHost: x\r\n\r\n", b"a" * 32_000])
@pytest.mark.parametrize("start", [b"GET /livez?", b"POST /segment?", b"GET "])
def test_a_target_that_is_too_long(server: Server, start: bytes, end: bytes) -> None:
    """One that has no end is refused before more than a head's bytes of it are held."""
    assert answers(server, start + b"a" * 8001 + end) == [414]


@pytest.mark.parametrize("host", [b"", b"[::1]:8000", b"x.example:80", b"a_b"])
def test_a_host_is_not_judged_further(server: Server, host: bytes) -> None:
    assert answers(server, b"GET /livez HTTP/1.1\r\nHost: %b\r\n\r\n" % host) == [200]


def test_http_1_0_needs_no_host(server: Server) -> None:
    assert answers(server, b"GET /livez HTTP/1.0\r\n\r\n") == [200]


def test_a_head_byte_by_byte(server: Server) -> None:
    with Link(server) as link:
        for byte in b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n":
            link.send(bytes([byte]))
            time.sleep(0.001)
        assert link.answer()[0] == 200


def test_chunks_byte_by_byte(server: Server) -> None:
    message = (
        b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n" + CHUNKED + b"\r\n"
    )
    message += b"".join(
        b"40;a=b\r\n%b\r\n" % PNG[i : i + 64] for i in range(0, len(PNG) // 64 * 64, 64)
    )
    rest = PNG[len(PNG) // 64 * 64 :]
    message += b"%x\r\n%b\r\n0\r\nX-A: b\r\n\r\n" % (len(rest), rest)
    with Link(server) as link:
        for byte in message:
            link.send(bytes([byte]))
        assert link.answer()[0] == 200
        link.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert link.answer()[0] == 200


def test_a_tunnel_is_not_offered(server: Server) -> None:
    (status,) = answers(server, b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", b"not a request")[:1]
    assert 400 <= status < 500


def test_http_1_0_answers_one_request_and_closes(server: Server) -> None:
    head = b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    assert answers(server, head + INNER) == [200]


def test_the_refusal_says_why(server: Server) -> None:
    with Link(server) as link:
        link.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + CHUNKED + LENGTH + b"\r\n")
        text = link.file.read()
    assert b"connection: close" in text.lower()
    assert b": send Transfer-Encoding or Content-Length, not both\r\n" in text


def test_an_offered_protocol_is_not_logged(server: Server) -> None:
    assert answers(server, b"GET /livez HTTP/1.1\r\nHost: x\r\n" + upgrade(b"h2c")[0] + b"\r\n")
    assert "pgrade request" not in server.log()


def test_bad_framing_leaves_no_traceback(server: Server) -> None:
    begun = b"GET /livez HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\nnot a size\r\n"
    assert answers(server, begun) == [400]
    assert "Traceback" not in server.log()
