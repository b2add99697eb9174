"""A browser gets types, policy and caching over HTTP; programs still get JSON."""

from __future__ import annotations

import re

import pytest

from service.api.http.page import FOLDER
from tests.serving import Server

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def test_the_page_is_for_browsers_and_json_for_programs(server: Server) -> None:
    page = server.rest.get("/", headers={"Accept": BROWSER})
    assert page.headers["content-type"].startswith("text/html")
    told = server.rest.get("/")
    assert told.json()["latency_target_s"] == 0.175
    assert told.json()["outputs"][0] == "label_map"
    for reply in (page, told):
        assert reply.headers["vary"] == "Accept"


@pytest.mark.parametrize(
    ("address", "media_type"),
    [
        ("/", "text/html"),
        ("/docs", "text/html"),
        ("/status", "text/html"),
        ("/web/page.css", "text/css"),
        ("/web/icon.svg", "image/svg+xml"),
        ("/web/js/main.js", "javascript"),
        ("/web/swagger/swagger-ui-bundle.js", "javascript"),
    ],
)
def test_files_and_their_policy(server: Server, address: str, media_type: str) -> None:
    reply = server.rest.get(address, headers={"Accept": BROWSER})
    assert reply.status_code == 200
    assert media_type in reply.headers["content-type"]
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "unsafe" not in policy or address == "/docs"
    assert reply.headers["x-content-type-options"] == "nosniff"
    again = server.rest.get(
        address, headers={"Accept": BROWSER, "If-None-Match": reply.headers["etag"]}
    )
    if address.startswith("/web/"):
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("address", ["/web/nope.js", "/web/", "/web/..%2fapp.py", "/web/js"])
def test_nothing_else_is_served(server: Server, address: str) -> None:
    reply = server.rest.get(address)
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"


def test_files_are_not_logged(server: Server) -> None:
    server.rest.get("/web/page.css", headers={"X-Request-ID": "a-file-is-quiet"})
    assert "a-file-is-quiet" not in server.log()


def test_no_file_names_another_address() -> None:
    """Besides the names of XML namespaces, which nobody fetches."""
    for path in set(FOLDER.rglob("*.*")) - set(FOLDER.rglob("*.jpg")):
        found = set(re.findall(r"https?://[^\s\"'<>`)]+", path.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, path
