"""JSON is compressed for whoever names gzip; images, and everybody else's answers, are as ever."""

from __future__ import annotations

import base64
import gzip
import json
import threading
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.responses import Response

from service.api.call import Calls
from service.api.http.middleware import GZIP_BYTES, RequestMiddleware
from service.telemetry import Telemetry
from tests.contract.oip import INFER
from tests.drawing import png
from tests.serving import Server

NOISE = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
PNG = png(NOISE)
"""Has many small regions, so that their polygons are long."""


def ask(server: Server, path: str, encoding: str, content: bytes = b"") -> httpx.Response:
    """Asks for exactly this encoding; the body is read as it was sent."""
    headers = {"Accept-Encoding": encoding}
    method = "POST" if content else "GET"
    with server.rest.stream(method, path, content=content, headers=headers) as reply:
        reply._content = b"".join(reply.iter_raw())
    return reply


@pytest.mark.parametrize("output", ["polygons", "rle"])
@pytest.mark.parametrize("encoding", ["gzip", "br;q=1.0, gzip;q=0.5", "gzip, deflate, br, zstd"])
def test_json_is_compressed_when_asked_for(server: Server, output: str, encoding: str) -> None:
    path = f"/segment?version=1&output={output}"
    plain = ask(server, path, "identity", PNG)
    packed = ask(server, path, encoding, PNG)
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["content-type"] == plain.headers["content-type"]
    assert int(packed.headers["content-length"]) == len(packed.content) < len(plain.content) / 2
    assert "Accept-Encoding" in packed.headers["vary"]
    assert gzip.decompress(packed.content) == plain.content


@pytest.mark.parametrize("path", ["/openapi.json", "/v1/models"])
def test_what_is_listed_is_compressed(server: Server, path: str) -> None:
    packed = ask(server, path, "gzip")
    assert packed.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(packed.content))


def test_numbers_of_the_open_inference_protocol_are_compressed(server: Server) -> None:
    files = {"name": "image", "shape": [1], "datatype": "BYTES"}
    request = {"inputs": [{**files, "data": [base64.b64encode(PNG).decode()]}]}
    body = json.dumps(request).encode()
    plain, packed = (ask(server, INFER, encoding, body) for encoding in ("identity", "gzip"))
    assert [r.headers.get("content-encoding") for r in (plain, packed)] == [None, "gzip"]
    assert json.loads(gzip.decompress(packed.content)) == plain.json()


@pytest.mark.parametrize(
    "encoding", ["", "identity", "br", "gzip;q=0", "gzip;q=0.000, br", "gzipped", "x-gzip-not"]
)
def test_nobody_gets_what_he_did_not_ask_for(server: Server, encoding: str) -> None:
    reply = ask(server, "/openapi.json", encoding)
    assert "content-encoding" not in reply.headers
    assert reply.json()["openapi"]


@pytest.mark.parametrize("output", ["label_map", "overlay", "color", "probabilities"])
def test_images_and_arrays_are_not_compressed(server: Server, output: str) -> None:
    reply = ask(server, f"/segment?version=1&output={output}", "gzip", PNG)
    assert reply.status_code == 200
    assert "content-encoding" not in reply.headers
    assert len(reply.content) > GZIP_BYTES


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/web/page.css", "/docs"])
def test_short_answers_text_and_files_are_not_compressed(server: Server, path: str) -> None:
    assert "content-encoding" not in ask(server, path, "gzip").headers


@pytest.mark.parametrize(("size", "elsewhere"), [(2_000, False), (500_000, True)])
async def test_large_answers_leave_the_event_loop_alone(
    monkeypatch: pytest.MonkeyPatch, size: int, elsewhere: bool
) -> None:
    threads = []
    make = zlib.compressobj

    def noted(*args: Any) -> Any:
        threads.append(threading.get_ident())
        return make(*args)

    monkeypatch.setattr(zlib, "compressobj", noted)
    answer = Response(b" " * size, media_type="application/json")
    calls = Calls(Telemetry(0.175), None, deadline_s=30, model_label=str)
    transport = httpx.ASGITransport(RequestMiddleware(answer, calls))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        reply = await client.get("/", headers={"Accept-Encoding": "gzip"})
    assert reply.content == b" " * size
    assert [thread != threading.get_ident() for thread in threads] == [elsewhere]
