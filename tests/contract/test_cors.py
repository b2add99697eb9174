"""Pages of other origins: what FCN_CORS_ORIGINS lets them ask, and read of the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.api.http.cors import ACCEPTED, EXPOSED
from tests.drawing import png, street
from tests.serving import Server, running
from tests.tiny_models import write_model

APP, DEV, STRANGER = "https://app.example.com", "http://localhost:5173", "https://app.example.org"
KEY = "a-key-for-tests-of-pages"
PNG = png(street(40, 56))
CORS = "access-control-"


@pytest.fixture(scope="module")
def keyed(one_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys: Path = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"page {KEY}\n")
    with running(one_model, api_keys_file=keys, cors_origins=f"{APP}, {DEV}") as server:
        yield server


@pytest.fixture(scope="module")
def for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository: Path = tmp_path_factory.mktemp("for_all")
    write_model(repository)
    with running(repository, cors_origins="*", root_path="/a/fcn") as server:
        yield server


def preflight(
    server: Server, origin: str, method: str = "POST", path: str = "/segment", **headers: str
) -> httpx.Response:
    asked = {"Origin": origin, "Access-Control-Request-Method": method}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.rest.options(path, headers={**asked, **named})


def of_cors(reply: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith(CORS)}


def listed(text: str) -> set[str]:
    return {part.strip().lower() for part in text.split(",")}


def test_by_default_no_page_may_ask(server: Server) -> None:
    asked = preflight(server, APP)
    assert asked.status_code == 405
    answer = server.rest.post("/segment", content=PNG, headers={"Origin": APP})
    assert answer.status_code == 200
    assert of_cors(asked) == of_cors(answer) == {}


@pytest.mark.parametrize("origin", [APP, DEV])
@pytest.mark.parametrize("path", ["/segment", "/v1/models", "/v2/models/tiny/infer"])
def test_a_preflight_needs_no_key(keyed: Server, origin: str, path: str) -> None:
    wanted = "authorization, content-type, x-api-key, x-request-id"
    reply = preflight(keyed, origin, path=path, Access_Control_Request_Headers=wanted)
    assert reply.status_code == 200
    assert reply.headers[CORS + "allow-origin"] == origin
    assert listed(reply.headers[CORS + "allow-methods"]) == {"get", "head", "post"}
    allowed = listed(reply.headers[CORS + "allow-headers"])
    assert {name.lower() for name in ACCEPTED} | {"content-type", "accept"} <= allowed
    assert int(reply.headers[CORS + "max-age"]) > 0
    assert CORS + "allow-credentials" not in reply.headers
    assert "origin" in listed(reply.headers["vary"])
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    ("origin", "method", "header", "words"),
    [
        (STRANGER, "POST", "", f"pages of '{STRANGER}' may not ask .* FCN_CORS_ORIGINS"),
        (f"{APP}:8443", "POST", "", "FCN_CORS_ORIGINS"),
        ("null", "POST", "", "pages of 'null' may not ask"),
        (APP, "DELETE", "", "pages may send GET, HEAD, POST .* asks for 'DELETE'"),
        (APP, "POST", "x-secret", "this one asks for 'POST' with 'x-secret'"),
    ],
)
def test_a_refused_preflight_says_why(
    keyed: Server, origin: str, method: str, header: str, words: str
) -> None:
    more = {"Access_Control_Request_Headers": header} if header else {}
    reply = preflight(keyed, origin, method, **more)
    assert reply.status_code == 403
    assert reply.json()["type"] == "urn:fcn:problem:not-allowed"
    assert re.search(words, reply.json()["detail"])
    assert CORS + "allow-origin" not in reply.headers


def test_a_page_reads_answers_and_their_headers(keyed: Server) -> None:
    headers = {"Origin": APP, "X-API-Key": KEY}
    reply = keyed.rest.post("/segment", content=PNG, headers=headers)
    assert reply.status_code == 200
    assert reply.headers[CORS + "allow-origin"] == APP
    exposed = listed(reply.headers[CORS + "expose-headers"])
    assert exposed == {name.lower() for name in EXPOSED}
    ours = {"x-request-id", "x-model", "x-model-version", "x-network-size", "server-timing"}
    assert ours <= exposed & reply.headers.keys()
    assert "origin" in listed(reply.headers["vary"])


@pytest.mark.parametrize("path", ["/segment", "/v1/models", "/v2", "/nothing"])
def test_a_page_reads_errors(keyed: Server, path: str) -> None:
    reply = keyed.rest.post(path, headers={"Origin": DEV})
    assert reply.status_code == 401
    assert reply.headers[CORS + "allow-origin"] == DEV
    assert "www-authenticate" in listed(reply.headers[CORS + "expose-headers"])


def test_another_origin_is_answered_and_may_not_read(keyed: Server) -> None:
    for headers in ({"Origin": STRANGER}, {}):
        reply = keyed.rest.post("/segment", content=PNG, headers={"X-API-Key": KEY, **headers})
        assert reply.status_code == 200
        assert CORS + "allow-origin" not in reply.headers
        assert "origin" in listed(reply.headers["vary"]), "an answer may be kept for another origin"


def test_a_star_is_for_all(for_all: Server) -> None:
    for path in ("/segment", "/a/fcn/segment"):
        assert preflight(for_all, STRANGER, path=path).headers[CORS + "allow-origin"] == "*"
        reply = for_all.rest.post(path, content=PNG, headers={"Origin": STRANGER})
        assert (reply.status_code, reply.headers[CORS + "allow-origin"]) == (200, "*")


def test_only_named_origins_reach_into_a_network(keyed: Server, for_all: Server) -> None:
    """Chromium asks so before a page of the internet may call a server inside a network."""
    named, anybody = (
        preflight(server, APP, Access_Control_Request_Private_Network="true")
        for server in (keyed, for_all)
    )
    assert named.headers[CORS + "allow-private-network"] == "true"
    assert anybody.status_code == 403
    assert "name their origins" in anybody.json()["detail"]


def test_other_options_are_no_preflight(for_all: Server) -> None:
    for headers in ({}, {"Origin": APP}, {"Access-Control-Request-Method": "POST"}):
        assert for_all.rest.options("/segment", headers=headers).status_code == 405


def test_preflights_are_counted(keyed: Server) -> None:
    series = 'fcn_requests_total{code="200",method="Preflight",model="",transport="rest"}'
    before = keyed.metric(series)
    preflight(keyed, APP)
    keyed.settles(series, before + 1)
