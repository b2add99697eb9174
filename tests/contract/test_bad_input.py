"""Every kind of bad input: the right code on both transports, and the server keeps serving."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fcn_client.stubs import segmentation_pb2 as pb
from tests.contract.conftest import MAX_IMAGE_BYTES
from tests.drawing import animated_gif, huge_png_header, jpeg, png, read_png, street
from tests.serving import Server
from tests.tiny_models import expected_label_map

GOOD = png(street())
_Code = grpc.StatusCode


@pytest.fixture(autouse=True)
def _keeps_serving(server: Server) -> Iterator[None]:
    """After each test a good request succeeds, on both transports."""
    yield
    reply = server.rest.post(
        "/segment?version=1", content=GOOD, headers={"Content-Type": "image/png"}
    )
    call = server.stub.Segment(pb.SegmentRequest(image=GOOD, version="1"), timeout=30)
    assert reply.status_code == 200
    assert reply.content == call.body
    np.testing.assert_array_equal(read_png(call.body), expected_label_map(street()))


def assert_problem(reply: httpx.Response, status: int, kind: str, *words: str) -> None:
    """RFC 9457, with a sentence that holds `words`."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert body["type"] == f"urn:fcn:problem:{kind}"
    assert body["status"] == status
    assert body["title"]
    assert body["request_id"] == reply.headers["x-request-id"]
    assert body["instance"].endswith(body["request_id"])
    for word in words:
        assert word in body["detail"]


def assert_status(error: grpc.RpcError, code: grpc.StatusCode, kind: str, *words: str) -> None:
    """A sentence that holds `words`, and the kind in the status details."""
    assert isinstance(error, grpc.Call)
    assert error.code() == code, error.details()
    for word in words:
        assert word in (error.details() or "")
    assert dict(error.trailing_metadata() or ()).get("x-request-id")
    status, info = rpc_status.from_call(error), error_details_pb2.ErrorInfo()
    assert status is not None and status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (kind, "fcn-serve")


@dataclass(frozen=True)
class Case:
    """One request that is wrong, as both transports can say it; what they are told has `words`."""

    status: int
    kind: str
    words: tuple[str, ...] = ()
    body: bytes = GOOD
    query: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    code: grpc.StatusCode = _Code.INVALID_ARGUMENT


def wrong(name: str, value: object, *words: str, text: str = "") -> Case:
    """A parameter that is wrong; `text`: as the query has it."""
    query = {name: text or str(value)}
    return Case(400, "invalid-parameter", words, query=query, fields={name: value})


def unknown(name: str, value: str, *words: str) -> Case:
    found = {name: value}
    return Case(404, f"unknown-{name}", words, query=found, fields=found, code=_Code.NOT_FOUND)


CASES = {
    "empty body": Case(400, "invalid-image", ("empty",), b""),
    "text": Case(415, "unsupported-image-format", ("JPEG",), b"hello " * 99),
    "truncated JPEG": Case(400, "invalid-image", (), jpeg(street(64, 64))[:-200]),
    "20000x20000 header": Case(
        413, "image-too-large", ("20000x20000", "scale it down"), huge_png_header()
    ),
    "animated GIF": Case(415, "unsupported-image-format", (), animated_gif()),
    "unknown model": unknown("model", "nope", "'nope'", "other, tiny"),
    "unknown version": unknown("version", "9", "'9'", "1, 2"),
    "unknown output": wrong("output", 77, "no output", text="masks"),
    "alpha above 1": wrong("alpha", 1.5, "alpha"),
    "alpha not a number": wrong("alpha", float("nan"), "alpha"),
    "unknown class": wrong("classes", ["red", "cat"], "'cat'", text="red,cat"),
}


@pytest.mark.parametrize("name", CASES)
def test_rest(server: Server, name: str) -> None:
    case = CASES[name]
    raw = server.rest.post(
        "/segment", params=case.query, content=case.body, headers={"Content-Type": "image/jpeg"}
    )
    assert_problem(raw, case.status, case.kind, *case.words)
    form = server.rest.post("/segment", params=case.query, files={"image": case.body})
    assert_problem(form, case.status, case.kind, *case.words)


@pytest.mark.parametrize("name", CASES)
def test_grpc(server: Server, name: str) -> None:
    case = CASES[name]
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.Segment(pb.SegmentRequest(image=case.body, **case.fields), timeout=30)
    assert_status(caught.value, case.code, case.kind, *case.words)


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("outptu=json", "'outptu'"),
        ("output=json&output=color", "twice"),
        ("alpha=much", "'much'"),
        ("alpha=", "alpha"),
        ("deadline_ms=0", "deadline_ms"),
        ("deadline_ms=-5", "deadline_ms"),
        ("deadline_ms=1.5", "deadline_ms"),
        ("deadline_ms=99999999999999999999", "deadline_ms"),
        ("model=" + "a" * 5000, "..."),
    ],
)
def test_bad_query(server: Server, query: str, word: str) -> None:
    reply = server.rest.post(
        f"/segment?{query}", content=GOOD, headers={"Content-Type": "image/png"}
    )
    status = 404 if query.startswith("model") else 400
    kind = "unknown-model" if status == 404 else "invalid-parameter"
    assert_problem(reply, status, kind, word)
    assert len(reply.content) < 2000


def test_nothing_acceptable(server: Server) -> None:
    headers = {"Content-Type": "image/png", "Accept": "text/html, image/png;q=0"}
    reply = server.rest.post("/segment", content=GOOD, headers=headers)
    assert_problem(reply, 406, "not-acceptable", "image/png", "application/json")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/json", "application/x-www-form-urlencoded"]
)
def test_unread_content_type(server: Server, content_type: str) -> None:
    reply = server.rest.post("/segment", content=GOOD, headers={"Content-Type": content_type})
    assert_problem(reply, 415, "unsupported-image-format", content_type, "image/jpeg", "'image'")


def test_compressed_body(server: Server) -> None:
    headers = {"Content-Type": "image/png", "Content-Encoding": "gzip"}
    reply = server.rest.post("/segment", content=GOOD, headers=headers)
    assert_problem(reply, 415, "unsupported-image-format", "gzip")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("file", ("a.png", GOOD))], ("'file'", "'image'")),
        ([("image", ("a.png", GOOD)), ("image", ("b.png", GOOD))], ("more than one",)),
        ([("image", ("a.png", GOOD)), ("output", (None, b"json"))], ("more than one",)),
    ],
)
def test_wrong_fields(
    server: Server, files: list[tuple[str, tuple[str | None, bytes]]], words: tuple[str, ...]
) -> None:
    reply = server.rest.post("/segment", files=files)
    assert_problem(reply, 400, "invalid-parameter", *words)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", GOOD),
        ("multipart/form-data; boundary=b", GOOD),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\ncut',
        ),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: " + b"y" * 9000 + b"\r\n\r\n"),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: y\r\n" * 50 + b"\r\n"),
        ("multipart/form-data; boundary=" + "b" * 5000, b""),
    ],
)
def test_broken_form(server: Server, content_type: str, body: bytes) -> None:
    reply = server.rest.post("/segment", content=body, headers={"Content-Type": content_type})
    assert_problem(reply, 400, "invalid-parameter")


def test_over_the_limit(server: Server) -> None:
    body = jpeg(street()) + bytes(MAX_IMAGE_BYTES)
    raw = server.rest.post("/segment", content=body, headers={"Content-Type": "image/jpeg"})
    assert_problem(raw, 413, "image-too-large", str(MAX_IMAGE_BYTES))
    form = server.rest.post("/segment", files={"image": body})
    assert_problem(form, 413, "image-too-large", str(MAX_IMAGE_BYTES))


@pytest.mark.parametrize("over_bytes", [1, 200_000])
def test_over_the_limit_over_grpc(server: Server, over_bytes: int) -> None:
    body = GOOD + bytes(MAX_IMAGE_BYTES - len(GOOD) + over_bytes)
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.Segment(pb.SegmentRequest(image=body), timeout=30)
    assert_status(caught.value, _Code.INVALID_ARGUMENT, "image-too-large", str(MAX_IMAGE_BYTES))


def test_as_large_as_allowed(server: Server) -> None:
    body = GOOD + bytes(MAX_IMAGE_BYTES - len(GOOD))  # decoders ignore what follows the image
    raw = server.rest.post("/segment", content=body, headers={"Content-Type": "image/png"})
    form = server.rest.post("/segment", files={"image": body})
    call = server.stub.Segment(pb.SegmentRequest(image=body), timeout=30)
    assert (raw.status_code, form.status_code) == (200, 200)
    assert raw.content == form.content == call.body


def test_endless_upload_is_cut_off(server: Server) -> None:
    """Chunked, so without a Content-Length to refuse: the answer comes while we still send."""
    chunk = b"2000\r\n" + bytes(0x2000) + b"\r\n"
    with socket.create_connection(server.http_address, timeout=10) as link:
        link.sendall(
            b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(MAX_IMAGE_BYTES // 0x2000 + 1):
            link.sendall(chunk)
        head = link.recv(65536)  # the request is not over
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in head.lower()
        # What is sent on is not kept, and in the end the server hangs up.
        ends = time.monotonic() + 30
        with pytest.raises(OSError):
            while time.monotonic() < ends:
                link.sendall(chunk)
                time.sleep(0.01)


def test_lying_content_length(server: Server) -> None:
    with socket.create_connection(server.http_address, timeout=10) as link:
        link.sendall(
            b"POST /segment HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
            b"Content-Length: 999999999999\r\n\r\n"
        )
        assert link.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_framework_errors_are_problems(server: Server) -> None:
    assert_problem(server.rest.get("/nope"), 404, "not-found", "/docs")
    wrong = server.rest.get("/segment")
    assert_problem(wrong, 405, "method-not-allowed", "GET")
    assert wrong.headers["allow"] == "POST"
    assert_problem(server.rest.get("/v1/models/nope"), 404, "unknown-model", "other, tiny")


def test_wrong_method_with_a_body(server: Server) -> None:
    assert_problem(server.rest.put("/segment", content=GOOD), 405, "method-not-allowed", "PUT")
