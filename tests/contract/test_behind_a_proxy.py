"""HEAD wherever GET is, callers who close their side, and proxies with a prefix or with TLS."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.drawing import png, street
from tests.link import Link
from tests.serving import Server, running
from tests.tiny_models import write_model

PNG = png(street(40, 56))
PREFIX = "/a/fcn"
KEY = "a-key-for-tests-of-proxies"
OF_A_PROXY = {
    "Host": "segment.example.org",
    "X-Forwarded-Host": "segment.example.org",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": PREFIX,
    "X-Forwarded-For": "203.0.113.7",
    "Forwarded": "for=203.0.113.7;proto=https;host=segment.example.org",
}
GETS = [
    *("/", "/livez", "/readyz", "/metrics", "/docs", "/status", "/openapi.json", "/v1/models"),
    *("/v1/models/tiny", "/web/page.css", "/web/js/main.js", "/web/swagger/swagger-ui.css"),
    *("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/models/tiny"),
    *("/v2/models/tiny/ready", "/v2/models/tiny/config", "/v2/models/tiny/versions/1/stats"),
]
OTHERS = ["/nothing", "/v1/models/nobody", "/v2/models/nobody", "/segment", "/web/nothing.css"]
OWN = {"date", "x-request-id", "etag"}


@pytest.mark.parametrize("path", [*GETS, *OTHERS, "/v2/models/tiny/infer", "/v2/repository/index"])
@pytest.mark.parametrize("accept", ["*/*", "text/html"])
def test_head_is_get_without_the_body(server: Server, path: str, accept: str) -> None:
    get, head = (server.rest.request(m, path, headers={"Accept": accept}) for m in ("GET", "HEAD"))
    assert head.status_code == get.status_code
    assert (head.status_code == 200) == (path in GETS)
    assert head.content == b""
    assert head.headers.keys() == get.headers.keys()
    for name in head.headers.keys() - OWN:
        # The metrics count the requests for them.
        assert head.headers[name] == get.headers[name] or (path, name) == (
            "/metrics",
            "content-length",
        )
    assert get.content


def test_no_byte_follows_an_answer_to_head(server: Server) -> None:
    with Link(server) as link:
        for path in (b"/metrics", b"/docs", b"/nothing", b"/livez"):
            link.send(b"HEAD %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
            while link.file.readline() != b"\r\n":
                pass
            link.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert link.answer()[2] == b'{"status":"alive"}'


def test_what_may_be_asked_says_head(server: Server) -> None:
    for path in ("/livez", "/v1/models", "/v2", "/docs"):
        assert set(server.rest.post(path).headers["allow"].split(", ")) == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "request_line",
    [
        *(f"GET {path}" for path in GETS),
        "GET /nothing",
        "POST /segment",
        "POST /segment?output=json",
        "POST /v2/models/tiny/infer",
    ],
)
def test_a_caller_who_has_closed_a_side_is_answered(server: Server, request_line: str) -> None:
    body = PNG if request_line.startswith("POST") else b""
    head = f"{request_line} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    head += f"Inference-Header-Content-Length: 0\r\nContent-Length: {len(body)}\r\n\r\n"
    with Link(server) as link:
        link.send(head.encode() + body)
        link.socket.shutdown(socket.SHUT_WR)
        status, _, answered = link.answer()
        assert status == (404 if "nothing" in request_line else 200)
        assert answered
        assert link.is_over()


@pytest.fixture(scope="module")
def prefixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("prefixed")
    write_model(folder / "models", "tiny", 1)
    (folder / "keys").write_text(f"camera {KEY}\n")
    with running(folder / "models", root_path=PREFIX, api_keys_file=folder / "keys") as server:
        yield server


@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_a_prefix_that_the_proxy_leaves_or_takes_off(prefixed: Server, prefix: str) -> None:
    keyed = httpx.Client(base_url=prefixed.url + prefix, headers={"X-API-Key": KEY})
    with keyed, httpx.Client(base_url=prefixed.url + prefix) as keyless:
        pages = ("/", "/docs", "/status", "/web/page.css", "/openapi.json")
        for path in ("/livez", "/metrics", *pages):
            assert keyless.get(path).status_code == 200, path
        for method, path in (("POST", "/segment"), ("GET", "/v1/models"), ("GET", "/v2")):
            assert keyless.request(method, path, content=PNG).status_code == 401, path
            assert keyed.request(method, path, content=PNG).status_code == 200, path
        assert keyless.post("/v2/repository/index").status_code == 403
        refused = keyed.get("/v2/models/nobody")
        assert list(refused.json()) == ["error"], "the shape of errors under /v2"


@pytest.mark.parametrize("path", [PREFIX, f"{PREFIX}x/livez", f"{PREFIX}{PREFIX}/livez"])
def test_what_only_looks_like_the_prefix(prefixed: Server, path: str) -> None:
    assert prefixed.rest.get(path).status_code == 401
    assert prefixed.rest.get(path, headers={"X-API-Key": KEY}).status_code == 404


@pytest.mark.parametrize("path", [*(p for p in GETS if p != "/"), "/segment", "/web", "/v2/models"])
@pytest.mark.parametrize("end", ["/", "//", "/?a=b", ""])
def test_no_address_leads_elsewhere(server: Server, path: str, end: str) -> None:
    """A redirect would have to know the address that the proxy is known by."""
    for method in ("GET", "POST", "HEAD"):
        reply = server.rest.request(method, path + end, headers=OF_A_PROXY)
        assert not reply.is_redirect
        assert "location" not in reply.headers
        assert "example.org" not in reply.text


def test_forwarded_headers_change_nothing(server: Server) -> None:
    plain, forwarded = (
        server.rest.get("/openapi.json", headers=headers).json() for headers in ({}, OF_A_PROXY)
    )
    assert plain == forwarded


@pytest.mark.parametrize("public", ["https://x/", "https://x/prefix/", "http://x:81/a/b/"])
def test_what_is_tried_out_goes_through_the_same_prefix(server: Server, public: str) -> None:
    document = server.rest.get("/openapi.json").json()
    (entry,) = document["servers"]
    assert urljoin(public + "openapi.json", entry["url"]) == public
    assert "/segment" in document["paths"]


def test_the_pages_ask_for_relative_addresses(server: Server) -> None:
    for path in ("/docs", "/"):
        page = server.rest.get(path, headers={"Accept": "text/html"}).text
        for mark in ('href="', 'src="'):
            found = [part.partition('"')[0] for part in page.split(mark)[1:]]
            assert found
            assert not [address for address in found if address.startswith(("/", "http"))]
