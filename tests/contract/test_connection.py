"""A connection to `POST /segment` is followed byte by byte."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest

from tests.contract.conftest import MAX_IMAGE_BYTES
from tests.drawing import png, street
from tests.link import Link
from tests.serving import Server
from tests.waiting import until

STREET = street(40, 56)
PNG = png(STREET)
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
    + PNG
    + b"\r\n--b--\r\n"
)
OWN_HEADERS = {"date", "x-request-id", "server-timing"}
INFLIGHT = "fcn_inflight_requests"
CLIENT_LEFT = 'fcn_requests_total{code="499",method="Segment",model="tiny",transport="rest"}'


@pytest.fixture
def link(server: Server) -> Iterator[Link]:
    with Link(server) as link:
        yield link


def ordinary(body: bytes = PNG, kind: str = "image/png", query: str = "", *lines: str) -> bytes:
    head = [f"POST /segment{query} HTTP/1.1", "Host: x", f"Content-Type: {kind}", *lines]
    head += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def chunked(body: bytes = PNG, kind: str = "image/png", query: str = "", *lines: str) -> bytes:
    """The same request with a body whose length is not said."""
    head = [f"POST /segment{query} HTTP/1.1", "Host: x", f"Content-Type: {kind}", *lines]
    head += ["Transfer-Encoding: chunked", "", ""]
    middle = len(body) // 2
    parts = [part for part in (body[:middle], body[middle:]) if part]
    coded = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return "\r\n".join(head).encode() + coded + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ((), 200),
        ((FORM, "multipart/form-data; boundary=b"), 200),
        ((PNG, "image/png", "?output=json&deadline_ms=20000&model=tiny&version=1"), 200),
        ((PNG, "image/png", "", "Accept: application/json", "Accept: image/png"), 200),
        ((PNG, "image/png", "", "X-Request-ID: mine"), 200),
        ((PNG, "image/png", "", "Connection: close"), 200),
        ((PNG, "image/png", "?model=nobody"), 404),
        ((PNG, "image/png", "", "Accept: text/html"), 406),
        ((bytes(MAX_IMAGE_BYTES + 1), "image/png"), 413),
        ((PNG, "text/plain"), 415),
        ((PNG, "text/plain", "?model=nobody"), 404),
        ((FORM[:-9], "multipart/form-data; boundary=b"), 400),
        ((b"", "image/png"), 400),
    ],
)  # fmt: skip
def test_a_body_of_known_length_and_one_in_chunks(
    server: Server, words: tuple[str], status: int
) -> None:
    said = []
    for write in (ordinary, chunked):
        link = Link(server)
        link.send(write(*words))  # type: ignore[arg-type]
        answer, headers, body = link.answer()
        assert answer == status
        if "X-Request-ID: mine" in words:
            assert headers["x-request-id"] == "mine"
        # Whoever refuses an endless body closes the connection.
        closes = headers.pop("connection", "")
        if write is ordinary:
            assert closes == ("close" if "Connection: close" in words else "")
        if closes:
            assert link.is_over()
        own = headers["x-request-id"].encode()
        assert re.fullmatch(rb"mine|[0-9a-f]{32}", own)
        text = body.replace(own, b"ID") if b"json" in headers["content-type"].encode() else body
        if headers["content-type"] == "application/json":
            text = re.sub(rb'"timings_ms": {[^}]+}', b"TIMINGS", text)
            headers.pop("content-length")
        kept = {name: value for name, value in headers.items() if name not in OWN_HEADERS}
        said.append((kept, ("server-timing" in headers), text))
        link.close()
    assert said[0] == said[1]


def test_the_same_request_again_and_again_on_one_connection(link: Link) -> None:
    answers = set()
    for query in ("?output=color", "?output=json", "?output=color", "?nothing=1", "") * 2:
        link.send(ordinary(PNG, "image/png", query))
        status, headers, body = link.answer()
        assert status == (400 if "nothing" in query else 200)
        if "json" not in headers["content-type"]:
            answers.add((query, body))
    assert len(answers) == 2


def test_a_body_in_many_pieces(link: Link) -> None:
    link.send(ordinary())
    whole = link.answer()
    message = ordinary()
    for at in range(0, len(message), 100):
        link.send(message[at : at + 100])
        time.sleep(0.002)
    pieces = link.answer()
    assert pieces[0] == whole[0] == 200
    assert pieces[2] == whole[2]


def test_requests_sent_before_the_answer_are_answered_in_turn(link: Link) -> None:
    queries = ("?output=color", "?output=json", "?version=9", "")
    link.send(b"".join(ordinary(PNG, "image/png", query) for query in queries))
    answers = [link.answer() for _ in queries]
    assert [status for status, _, _ in answers] == [200, 200, 404, 200]
    kinds = [headers["content-type"] for _, headers, _ in answers]
    assert kinds == ["image/png", "application/json", "application/problem+json", "image/png"]
    link.send(ordinary())
    assert link.answer()[2] == answers[-1][2]


def test_other_requests_on_the_same_connection(link: Link) -> None:
    link.send(ordinary())
    assert link.answer()[0] == 200
    link.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert link.answer()[2] == b'{"status":"alive"}'
    link.send(chunked())
    assert link.answer()[0] == 200
    link.send(b"GET /segment HTTP/1.1\r\nHost: x\r\n\r\n")
    assert link.answer()[0] == 405
    link.send(ordinary())
    assert link.answer()[0] == 200


def test_a_head_without_an_end_is_refused(link: Link) -> None:
    begin = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: "
    link.send(begin + b"a" * (64 * 1024 + 1 - len(begin)))
    assert link.file.readline().split()[1] == b"400"


def test_a_client_that_leaves_in_the_middle_of_its_body(server: Server, link: Link) -> None:
    before = server.metric(CLIENT_LEFT)
    link.send(ordinary()[:-20])
    link.close()
    server.wait_for(CLIENT_LEFT, before + 1)


def test_a_client_that_leaves_before_its_answer(server: Server, link: Link) -> None:
    """Its first request may be answered in time or not; the others waited for it."""
    ends_with = (CLIENT_LEFT, CLIENT_LEFT.replace("499", "200"))

    def ended() -> float:
        return sum(map(server.metric, ends_with))

    before = ended()
    link.send(ordinary() * 3)
    link.close()
    until(lambda: ended() > before)
    server.settles(INFLIGHT, 0)
    assert server.rest.post("/segment", content=PNG).status_code == 200
