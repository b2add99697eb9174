"""A server over REST: a small one here that answers as the test says."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

import training.server
from tests.drawing import encode, png, read_png, street
from tests.tiny_models import CLASSES, expected_label_map
from training.rest_predictor import RestPredictor
from training.server import ServerError

OpenPredictor = Callable[..., RestPredictor]
Reply = tuple[int, bytes, dict[str, str]]


def model(name: str, *, default: bool = True, classes: list[str] | None = None) -> dict[str, Any]:
    """As GET /v1/models lists it: version 1 is old and has other classes."""
    names = classes or [info.name for info in CLASSES]
    old = {"version": "1", "contract": {"classes": [{"name": "old"}]}}
    new = {"version": "2", "contract": {"classes": [{"name": n} for n in names]}}
    return {
        "name": name,
        "is_default": default,
        "default_version": "2",
        "versions": [old, new],
    }


def problem(status: int, **headers: str) -> Reply:
    body = {"title": "Out of tune", "detail": "tune it", "status": status}
    return (
        status,
        json.dumps(body).encode(),
        {"Content-Type": "application/problem+json", **headers},
    )


class FakeServer:
    """`segment` may be replaced; `requests` are (method, path, query, content type)."""

    def __init__(self) -> None:
        self.listing: Any = {"models": [model("tiny")]}
        self.segment: Callable[[bytes], Reply] = self.label
        self.requests: list[tuple[str, str, dict[str, list[str]], str | None]] = []
        self.connections = 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                fake.connections += 1
                super().setup()

            def do_GET(self) -> None:
                self.answer((200, json.dumps(fake.listing).encode(), {}))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(fake.segment(body))

            def answer(self, reply: Reply) -> None:
                parts = urlsplit(self.path)
                kind = self.headers.get("Content-Type")
                fake.requests.append((self.command, parts.path, parse_qs(parts.query), kind))
                status, body, headers = reply
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = "Connection" in headers

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def label(self, body: bytes) -> Reply:
        return 200, encode_label_map(expected_label_map(read_png(body))), {}

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def encode_label_map(label_map: Any) -> bytes:
    from PIL import Image

    image = Image.fromarray(label_map)
    image.putpalette([0] * 768)
    return encode(image)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


@pytest.fixture
def open_predictor() -> Iterator[OpenPredictor]:
    opened = []

    def make(url: str, model: str | None = None) -> RestPredictor:
        opened.append(RestPredictor(url, model))
        return opened[-1]

    yield make
    for predictor in opened:
        predictor.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "street.png"
    path.write_bytes(png(street()))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_file_itself_is_sent(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    predict = open_predictor(server.url)
    assert predict.model.class_names == ("red", "green", "blue")
    assert (predict(picture) == expected_label_map(street())).all()
    query = {"model": ["tiny"], "version": ["2"], "output": ["label_map"]}
    assert server.requests[-1] == ("POST", "/segment", query, "image/png")


def test_one_connection_serves_many_images(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    predict = open_predictor(server.url)
    for _ in range(5):
        predict(picture)
    assert server.connections == 1


def test_threads_have_connections_of_their_own(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    predict = open_predictor(server.url)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(predict, [picture] * 9))
    assert all((answer == expected_label_map(street())).all() for answer in answers)
    assert server.connections <= 1 + 3


def test_a_connection_that_the_server_closed_is_opened_again(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    """Silently, as after an idle time: the client notices only when it asks again."""
    predict = open_predictor(server.url)
    server.segment = lambda body: (*server.label(body)[:2], {"Connection": "close-silently"})
    for _ in range(3):
        predict(picture)
    assert server.connections >= 3


def test_a_path_before_segment(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    open_predictor(server.url + "/behind/a proxy/")(picture)
    assert [path for _, path, _, _ in server.requests] == [
        "/behind/a%20proxy/v1/models",
        "/behind/a%20proxy/segment",
    ]


@pytest.mark.parametrize(("asked", "chosen"), [(None, "b"), ("a", "a")])
def test_model_by_name_or_default(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path, asked: str | None, chosen: str
) -> None:
    server.listing = {"models": [model("a", default=False, classes=["x"]), model("b")]}
    predict = open_predictor(server.url, asked)
    predict(picture)
    assert server.requests[-1][2]["model"] == [chosen]
    assert len(predict.model.class_names) == (1 if chosen == "a" else 3)


def test_no_such_model(server: FakeServer, open_predictor: OpenPredictor) -> None:
    with pytest.raises(ServerError, match="has no model 'huge': it has tiny"):
        open_predictor(server.url, "huge")


def test_a_model_that_does_not_serve_is_passed_over(
    server: FakeServer, open_predictor: OpenPredictor
) -> None:
    failed = {"version": "1", "state": "failed", "reason": "no model"}
    broken = {"name": "a", "is_default": False, "default_version": None, "versions": [failed]}
    server.listing = {"models": [broken, model("b")]}
    assert open_predictor(server.url).model.name == "b"
    with pytest.raises(ServerError, match="has no model 'a': it has b"):
        open_predictor(server.url, "a")


def test_no_default_model(server: FakeServer, open_predictor: OpenPredictor) -> None:
    server.listing = {"models": [model("a", default=False), model("b", default=False)]}
    with pytest.raises(ServerError, match=r"no default model: name one with --model \(a, b\)"):
        open_predictor(server.url)


def test_no_server() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ServerError, match=f"cannot reach {url}: Connection refused"):
        RestPredictor(url)


@pytest.mark.parametrize("listing", [{"hello": "world"}, [], {"models": [{"name": "x"}]}])
def test_another_kind_of_server(
    server: FakeServer, open_predictor: OpenPredictor, listing: Any
) -> None:
    server.listing = listing
    with pytest.raises(ServerError, match="/v1/models is no list of models"):
        open_predictor(server.url)


def test_a_problem_is_reported_with_its_words(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    predict = open_predictor(server.url)
    server.segment = lambda _body: problem(415)
    with pytest.raises(ServerError, match=r"street\.png: .* answered 415: Out of tune: tune it"):
        predict(picture)


def test_an_error_that_is_no_problem_json(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path
) -> None:
    predict = open_predictor(server.url)
    server.segment = lambda _body: (502, b"<html>", {})
    with pytest.raises(ServerError, match="answered 502 Bad Gateway"):
        predict(picture)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(
    server: FakeServer,
    open_predictor: OpenPredictor,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    predict = open_predictor(server.url)
    monkeypatch.setattr(training.server, "MAX_WAIT_S", 0.01)
    replies = [problem(status, **{"Retry-After": "7"})] * 3

    def segment(body: bytes) -> Reply:
        return replies.pop() if replies else server.label(body)

    server.segment = segment
    assert (predict(picture) == expected_label_map(street())).all()


def test_a_server_that_stays_busy(
    server: FakeServer,
    open_predictor: OpenPredictor,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict = open_predictor(server.url)
    monkeypatch.setattr(training.server, "MAX_WAIT_S", 0.01)
    server.segment = lambda _body: problem(429)
    with pytest.raises(ServerError, match="answered 429: Out of tune"):
        predict(picture)
    posts = [method for method, *_ in server.requests if method == "POST"]
    assert len(posts) == training.server.MAX_ATTEMPTS


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"hello", "something that is no PNG"),
        (png(np.zeros((2, 2, 3), np.uint8)), "a RGB picture, not with a label map"),
        (png(street())[:-40], "something that is no PNG"),
    ],
)
def test_an_answer_that_is_no_label_map(
    server: FakeServer, open_predictor: OpenPredictor, picture: Path, body: bytes, complaint: str
) -> None:
    predict = open_predictor(server.url)
    server.segment = lambda _body: (200, body, {})
    with pytest.raises(ServerError, match=complaint):
        predict(picture)


def test_waits_are_what_the_server_asks_within_bounds() -> None:
    waits: list[float] = []
    asked = iter([0.0, 3.0, 500.0])

    def ask() -> str:
        wait_s = next(asked, None)
        if wait_s is None:
            return "done"
        raise training.server.Busy("busy", wait_s)

    assert training.server.with_patience(ask, waits.append) == "done"
    assert waits == [0.1, 3.0, training.server.MAX_WAIT_S]
