"""A server over REST that answers as a test says."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

from tests.drawing import encode, read_png
from tests.tiny_models import CLASSES, expected_label_map

Reply = tuple[int, bytes, dict[str, str]]


def model(name: str, *, default: bool = True, classes: list[str] | None = None) -> dict[str, Any]:
    """List a model as GET /v1/models does: version 1 is old and has other classes."""
    names = classes or [info.name for info in CLASSES]
    return {
        "name": name,
        "is_default": default,
        "default_version": "2",
        "versions": [_version("1", ["old"]), _version("2", names)],
    }


def _version(version: str, names: list[str]) -> dict[str, Any]:
    classes = [{"id": i, "name": name, "color": [0, 0, 0]} for i, name in enumerate(names)]
    return {"version": version, "state": "ready", "contract": {"classes": classes}}


def problem(status: int, kind: str = "about:blank", **headers: str) -> Reply:
    """A problem document; `kind`: the last part of its type."""
    type_ = kind if ":" in kind else f"urn:fcn:problem:{kind}"
    body = {"type": type_, "title": "Out of tune", "detail": "tune it", "status": status}
    return status, json.dumps(body).encode(), {"Content-Type": "application/problem+json"} | headers


class FakeServer:
    """`segment` may be replaced; `requests` are (method, path, query)."""

    def __init__(self) -> None:
        self.listing: Any = {"models": [model("tiny")]}
        self.segment: Callable[[bytes], Reply] = self.label
        self.requests: list[tuple[str, str, dict[str, list[str]]]] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer((200, json.dumps(fake.listing).encode(), {}))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.answer(fake.segment(body))

            def answer(self, reply: Reply) -> None:
                parts = urlsplit(self.path)
                fake.requests.append((self.command, parts.path, parse_qs(parts.query)))
                status, body, headers = reply
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    @property
    def posts(self) -> list[dict[str, list[str]]]:
        """The queries of the images that were sent."""
        return [query for method, _path, query in self.requests if method == "POST"]

    def label(self, body: bytes) -> Reply:
        return label_map_reply(expected_label_map(read_png(body)))

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def label_map_reply(label_map: Any) -> Reply:
    """A 200 with the uint8 [H,W] as a palette PNG."""
    image = Image.fromarray(label_map)
    image.putpalette([0] * 768)
    return 200, encode(image), {"Content-Type": "image/png"}


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
