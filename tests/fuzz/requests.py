"""Fuzzes requests: HTTP's framing, forms, and messages in JSON, binary and protobuf."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any
from zlib import compress, crc32

import h11
import numpy as np

from service.api.grpc.messages import FILES, parse
from service.api.http.body import read_image
from service.api.oip import json_codec
from service.api.oip.grpc import _BULK, _read
from service.api.oip.tensors import InferRequest
from service.api.stubs import inference_pb2 as oip
from service.api.stubs import segmentation_pb2 as own
from service.api.uploads import Uploads
from service.errors import (
    ImageTooLarge,
    InvalidParameter,
    MessageTooLarge,
    Overloaded,
    UnsupportedImageFormat,
)
from service.framing import MAX_HEAD_BYTES, Body, Refused, body_of, parse_head, take_head
from tests.drawing import png, street
from tests.fuzz.target import MAX_BYTES, Target

REQUEST_ERRORS = (InvalidParameter, ImageTooLarge, UnsupportedImageFormat)
PIXELS = street(2, 3)
FILE = png(PIXELS)
Seen = list[tuple[bytes, bytes, bytes]]
"""Method, target and body of each request."""


def pieces(data: bytes) -> Iterator[bytes]:
    """Cuts the bytes at places that follow from them, so that a run can be repeated."""
    at, state = 0, crc32(data)
    while at < len(data):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        size = 1 + (state >> 8) % (3 if state & 64 else 200)
        yield data[at : at + size]
        at += size


def _requests() -> list[bytes]:
    host = b"Host: x\r\n"
    get = b"GET /a HTTP/1.1\r\n" + host + b"\r\n"
    post = b"POST /segment?output=png HTTP/1.1\r\n" + host
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n"
    return [
        get,
        post + b"Content-Length: 5\r\n\r\nhello" + get,
        chunked + b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n" + get,
        chunked + b"1\r\na\r\n0\r\nX-Trailer: 1\r\n\r\n",
        b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        post + b"Expect: 100-continue\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n" + host + b"Accept: a, b\r\nX-Empty:\r\n\r\n",
    ]


def _ours(parts: Iterator[bytes]) -> tuple[Seen, bool]:
    """Reads requests as the server does; and says whether it refused the rest."""
    seen: Seen = []
    pending = bytearray()
    body: Body | None = None
    try:
        for part in parts:
            pending += part
            while pending or (body is not None and body.complete):
                if body is None:
                    head = take_head(pending)
                    if head is None:
                        break
                    _, request = parse_head(head)
                    body, content = body_of(request), b""
                    begun = (request.method, request.target)
                if pending and not body.complete:
                    content += body.take(pending)
                if not body.complete:
                    break
                seen.append((*begun, content))
                body = None
    except Refused as error:
        assert error.status in (400, 414) and str(error)
        return seen, True
    return seen, False


def _by_h11(data: bytes) -> Seen:
    """Reads them by h11 alone, as far as it goes."""
    seen: Seen = []
    connection = h11.Connection(h11.SERVER, MAX_HEAD_BYTES)
    connection.receive_data(data)
    answer = h11.Response(status_code=200, headers=[("Content-Length", "0")])
    try:
        while True:
            request = connection.next_event()
            if not isinstance(request, h11.Request):
                return seen
            content = b""
            while isinstance(event := connection.next_event(), h11.Data):
                content += event.data
            if not isinstance(event, h11.EndOfMessage):
                return seen
            seen.append((request.method, request.target, content))
            connection.send(answer)
            connection.send(h11.EndOfMessage())
            connection.start_next_cycle()
    except h11.ProtocolError:
        return seen


def _framing(data: bytes) -> str:
    whole, refused = _ours(iter([data]))
    assert _ours(pieces(data)) == (whole, refused), "another result when it is cut"
    # h11 stops where a connection is to close, and refuses some of what it has read.
    other = _by_h11(data)
    assert whole[: len(other)] == other[: len(whole)], "h11 sees other requests"
    if refused:
        raise Refused("the server refuses the rest of the connection")
    return "read" if whole else "incomplete"


_BOUNDARY = b"abc"
_FORM = b"multipart/form-data; boundary=" + _BOUNDARY + b"\n"


def _forms() -> list[bytes]:
    def part(name: bytes, content: bytes, more: bytes = b"") -> bytes:
        head = b'Content-Disposition: form-data; name="%b"%b' % (name, more)
        return b"--%b\r\n%b\r\n\r\n%b\r\n" % (_BOUNDARY, head, content)

    end = b"--%b--\r\n" % _BOUNDARY
    return [
        _FORM + part(b"image", FILE, b'; filename="a.png"\r\nContent-Type: image/png') + end,
        _FORM + b"before\r\n" + part(b"image", b"\r\n--ab\r\n\r\n") + end + b"after",
        _FORM + part(b"other", b"x") + part(b"image", b"y") + end,
        _FORM + end,
        b"image/png\n" + FILE,
        b"application/octet-stream; a=b\n" + FILE,
    ]


def _form(data: bytes) -> str:
    kind, _, body = data.partition(b"\n")

    async def read(parts: Iterator[bytes]) -> bytes:
        async def stream() -> AsyncIterator[bytes]:
            for part in parts:
                yield part

        return await read_image(stream(), kind.decode("latin-1"), None, None, MAX_BYTES)

    def outcome(parts: Iterator[bytes]) -> bytes | type[Exception]:
        try:
            return asyncio.run(read(parts))
        except REQUEST_ERRORS as error:
            return type(error)

    whole = outcome(iter([body]))
    assert outcome(pieces(body)) == whole, "another result when it is cut"
    if not isinstance(whole, bytes):
        raise whole("the form is refused, whole and cut")
    if whole == body:
        return "a body"
    # RFC 2046: the part is what lies between an empty line and the delimiter.
    assert b"\r\n\r\n" + whole + b"\r\n--" in b"\r\n\r\n" + body, "no part is that"
    return "read"


def _json_bodies() -> list[bytes]:
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 3, 3]}
    flat = PIXELS.ravel().tolist()
    file = base64.b64encode(FILE).decode()
    asked = [{"name": "label_map", "parameters": {"binary_data": True}}, {"name": "overlay"}]
    parameters = {"binary_data_output": True, "timeout": 1000}
    documents: list[dict[str, Any]] = [
        {"id": "a", "inputs": [{**image, "data": flat}]},
        {"inputs": [{**image, "data": PIXELS[None].tolist()}], "outputs": asked},
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [file]}]},
        {"parameters": parameters, "inputs": [{**image, "shape": [1, 1, 6, 3], "data": flat}]},
        {"parameters": {"data": flat}, "inputs": [{**image, "data": 0}]},  # not its own
    ]
    return [json.dumps(document).encode() for document in documents]


def _json(data: bytes) -> str:
    request = json_codec.read(data, None, max_json_bytes=MAX_BYTES)
    # The same by the JSON of the standard library alone, numbers as objects and all.
    (tensor,) = json.loads(data)["inputs"]
    given, shape = tensor["data"], tensor["shape"]
    if tensor["datatype"] == "BYTES":
        assert [base64.b64decode(text) for text in given] == request.images
        return "files"
    wanted = np.array(given).reshape(shape)
    assert wanted.min() >= 0 and wanted.max() <= 255 and wanted.dtype.kind == "i"
    assert np.array_equal(np.stack(request.images), wanted)
    return "read"


def _binary_bodies() -> list[bytes]:
    def body(tensor: dict[str, Any], behind: bytes) -> bytes:
        text = json.dumps({"inputs": [{"name": "image", **tensor}]}).encode()
        return struct.pack("<I", len(text)) + text + behind

    size = {"binary_data_size": PIXELS.nbytes}
    file = struct.pack("<I", len(FILE)) + FILE
    sizes = {"binary_data_size": 2 * len(file)}
    return [
        body({"datatype": "UINT8", "shape": [1, 2, 3, 3], "parameters": size}, PIXELS.tobytes()),
        body({"datatype": "BYTES", "shape": [2], "parameters": sizes}, 2 * file),
        struct.pack("<I", 0) + FILE,
    ]


def _binary(data: bytes) -> str:
    """Reads a body behind four bytes, which say how much of it is JSON."""
    length = int.from_bytes(data[:4], "little")
    request = json_codec.read(data[4:], str(length), max_json_bytes=MAX_BYTES)
    return _held(request, data)


def _held(request: InferRequest, data: bytes) -> str:
    """Checks that images are what was sent, in its order, and no more than that."""
    at = 0
    for image in request.images:
        content = image if isinstance(image, bytes) else image.tobytes()
        at = data.find(content, at)
        assert at >= 0, "an image was not sent"
        at += len(content)
    return "files" if isinstance(request.images[0], bytes) else "read"


def _uploads() -> Uploads:
    return Uploads(max_count=4, max_bytes=1 << 24, timeout_s=9, rejected=lambda reason: None)


def _infer_messages() -> list[bytes]:
    pixels = oip.ModelInferRequest.InferInputTensor(
        name="image", datatype="UINT8", shape=[1, 2, 3, 3]
    )
    numbers = oip.ModelInferRequest.InferInputTensor()
    numbers.CopyFrom(pixels)
    numbers.contents.uint_contents.extend(PIXELS.ravel().tolist())
    files = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    files.contents.bytes_contents.append(FILE)
    parameters = {"timeout": oip.InferParameter(int64_param=1000)}
    asked = [oip.ModelInferRequest.InferRequestedOutputTensor(name="label_map")]
    return [
        oip.ModelInferRequest(
            model_name="tiny", inputs=[pixels], raw_input_contents=[PIXELS.tobytes()]
        ).SerializeToString(),
        oip.ModelInferRequest(inputs=[numbers], parameters=parameters).SerializeToString(),
        oip.ModelInferRequest(inputs=[files], outputs=asked).SerializeToString(),
    ]


def _infer_message(data: bytes) -> str:
    message, n_bytes = asyncio.run(parse(data, oip.ModelInferRequest, _uploads(), 1 << 20, _BULK))
    if n_bytes == len(data):
        assert message == oip.ModelInferRequest.FromString(data)
    request = _read(message)
    return "files" if isinstance(request.images[0], bytes) else "read"


def _segment_messages() -> list[bytes]:
    asked = own.SegmentRequest(image=FILE, model="tiny", output=own.OUTPUT_OVERLAY)
    plain = asked.SerializeToString()
    return [plain, compress(plain), own.SegmentRequest(image=FILE).SerializeToString()]


def _segment_message(data: bytes) -> str:
    bulk = {own.SegmentRequest.IMAGE_FIELD_NUMBER: FILES}
    found, n_bytes = asyncio.run(parse(data, own.SegmentRequest, _uploads(), 1 << 20, bulk))
    if n_bytes == len(data):
        assert found == own.SegmentRequest.FromString(data)
        return "read"
    return "unpacked"


_MESSAGE_ERRORS = (*REQUEST_ERRORS, MessageTooLarge, Overloaded)
_BOTH = frozenset({"read", "files"})
REQUESTS = (
    Target("HTTP framing", _requests, _framing, (Refused,), frozenset({"read", "Refused"})),
    Target("form", _forms, _form, REQUEST_ERRORS, frozenset({"read", "a body"})),
    Target("OIP in JSON", _json_bodies, _json, REQUEST_ERRORS, _BOTH),
    Target("OIP in binary", _binary_bodies, _binary, REQUEST_ERRORS, _BOTH),
    Target("OIP message", _infer_messages, _infer_message, _MESSAGE_ERRORS, _BOTH),
    Target("message", _segment_messages, _segment_message, _MESSAGE_ERRORS),
)
