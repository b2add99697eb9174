"""Servers that answer as they are told to, over HTTP and over gRPC."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NoReturn

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from PIL import Image

from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.types import ClassInfo
from service.api.status import TABLE, TYPE_PREFIX, Status
from service.errors import NotAuthenticated, ServiceError
from tests.drawing import encode


@dataclass(frozen=True)
class Refusal:
    """An error of the service's table, or (`row` is None) what a proxy in front of it says."""

    title: str
    row: Status | None
    wait: str | None = None
    """Retry-After as it is sent; over gRPC, milliseconds."""


def refusal(error: type[ServiceError], wait: str | None = None) -> Refusal:
    return Refusal(error.title, TABLE[error], wait)


LABELS = np.arange(6, dtype=np.uint8).reshape(2, 3)


# `fake`, which knows the classes of LABELS.
LISTING = json.dumps(
    {
        "models": [
            {
                "name": "fake",
                "is_default": True,
                "default_version": "1",
                "versions": [
                    {
                        "version": "1",
                        "state": "ready",
                        "contract": {
                            "classes": [
                                {"id": n, "name": f"c{n}", "color": [n, n, n]} for n in range(6)
                            ]
                        },
                    }
                ],
            }
        ]
    }
).encode()


def label_map_png() -> bytes:
    image = Image.fromarray(LABELS)
    image.putpalette(bytes(range(256)) * 3)
    return encode(image)


@dataclass
class Script:
    """refusals: the first answers; after them, label maps. delay_s: before each answer.

    key: what has to be sent as `Authorization: Bearer`. max_bytes: of an image in a stream; a
    larger one ends it, as gRPC's own limit does. silent: ids in a stream that get no answer.
    """

    refusals: Sequence[Refusal | None] = ()
    delay_s: float = 0.0
    key: str | None = None
    max_bytes: int = 1 << 20
    silent: frozenset[str] = frozenset()
    body: bytes = field(default_factory=label_map_png)
    asked: list[dict[str, str]] = field(default_factory=list)
    """Each request's query (or fields), id, and the connection it came by."""
    connections: set[object] = field(default_factory=set)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    """All headers of each request."""

    def next(self, **request: str) -> Refusal | None:
        self.asked.append(request)
        time.sleep(self.delay_s)
        number = len(self.asked) - 1
        return self.refusals[number] if number < len(self.refusals) else None

    def barred(self, headers: Mapping[str, str]) -> Refusal | None:
        """Says what somebody without the key is told. headers: with names in lower case."""
        self.headers.append(headers)
        if self.key is None or headers.get("authorization") == f"Bearer {self.key}":
            return None
        self.asked.append({"path": "barred"})
        return refusal(NotAuthenticated)


@contextmanager
def http_server(script: Script) -> Iterator[str]:
    """Its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            script.connections.add(self.client_address)
            refused = script.barred(self.lower()) or script.next(
                path=self.path, id=self.headers["X-Request-ID"]
            )
            self.answer(refused)

        def do_GET(self) -> None:
            refused = script.barred(self.lower())
            self.answer(refused, LISTING, "application/json")

        def lower(self) -> dict[str, str]:
            return {name.lower(): value for name, value in self.headers.items()}

        def answer(
            self, refused: Refusal | None, body: bytes = script.body, kind: str = "image/png"
        ) -> None:
            if refused is None:
                self.send_response(200)
            elif refused.row is None:
                self.send_response(503)
                body, kind = b"<h1>no healthy upstream</h1>", "text/html"
            else:
                self.send_response(refused.row.http)
                kind = "application/problem+json"
                body = json.dumps(
                    {
                        "type": TYPE_PREFIX + refused.row.kind,
                        "title": refused.title,
                        "status": refused.row.http,
                        "detail": "do this",
                        "instance": "urn:fcn:request:7",
                        "request_id": "7",
                    }
                ).encode()
            if refused and refused.wait:
                self.send_header("Retry-After", refused.wait)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def grpc_server(script: Script) -> Iterator[str]:
    """Its address."""

    answer = pb.SegmentResponse(body=script.body, media_type="image/png")

    def segment(request: pb.SegmentRequest, context: grpc.ServicerContext) -> pb.SegmentResponse:
        sent = {key: str(value) for key, value in context.invocation_metadata()}
        script.connections.add(context.peer())
        refused = script.barred(sent) or script.next(path="Segment", id=sent["x-request-id"])
        if refused is None:
            return answer
        abort(refused, context)

    def segment_stream(
        requests: Iterator[pb.SegmentStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.SegmentStreamResponse]:
        sent = {key: str(value) for key, value in context.invocation_metadata()}
        script.connections.add(context.peer())
        if barred := script.barred(sent):
            abort(barred, context)
        for message in requests:
            if not message.HasField("request") or message.id in script.silent:
                continue
            if len(message.request.image) > script.max_bytes:
                context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max"
                )
            refused = script.next(
                path="SegmentStream", id=message.id, deadline_ms=str(message.deadline_ms)
            )
            if refused is None:
                yield pb.SegmentStreamResponse(id=message.id, response=answer)
            elif refused.row is None:
                abort(refused, context)
            else:
                error = pb.ItemError(
                    code=refused.row.code.value[0],
                    message=f"{refused.title}: do this",
                    type=TYPE_PREFIX + refused.row.kind,
                    retry_after_ms=int(refused.wait) if refused.wait else None,
                )
                yield pb.SegmentStreamResponse(id=message.id, error=error)

    def models(_: pb.ListModelsRequest, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        sent = {key: str(value) for key, value in context.invocation_metadata()}
        if barred := script.barred(sent):
            abort(barred, context)
        classes = [pb.ClassInfo(id=n, name=f"c{n}", color_rgb=(n, n, n)) for n in range(6)]
        model = pb.Model(name="fake", version="1", state="ready", is_default=True, classes=classes)
        return pb.ListModelsResponse(models=[model])

    def abort(refused: Refusal, context: grpc.ServicerContext) -> NoReturn:
        trailing: list[tuple[str, str | bytes]] = [("x-request-id", "7")]
        if refused.wait:
            trailing.append(("grpc-retry-pushback-ms", refused.wait))
        if refused.row is None:
            context.set_trailing_metadata(tuple(trailing))
            context.abort(grpc.StatusCode.UNAVAILABLE, "no healthy upstream")
        text = f"{refused.title}: do this"
        status = status_pb2.Status(code=refused.row.code.value[0], message=text)
        info = error_details_pb2.ErrorInfo(reason=refused.row.kind, domain="fcn-serve")
        status.details.add().Pack(info)
        trailing.append(("grpc-status-details-bin", status.SerializeToString()))
        context.set_trailing_metadata(tuple(trailing))
        context.abort(refused.row.code, text)
        raise AssertionError("abort raises")

    handlers = {
        "Segment": grpc.unary_unary_rpc_method_handler(
            segment,
            request_deserializer=pb.SegmentRequest.FromString,
            response_serializer=pb.SegmentResponse.SerializeToString,
        ),
        "SegmentStream": grpc.stream_stream_rpc_method_handler(
            segment_stream,
            request_deserializer=pb.SegmentStreamRequest.FromString,
            response_serializer=pb.SegmentStreamResponse.SerializeToString,
        ),
        "ListModels": grpc.unary_unary_rpc_method_handler(
            models,
            request_deserializer=pb.ListModelsRequest.FromString,
            response_serializer=pb.ListModelsResponse.SerializeToString,
        ),
    }
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("segmentation.v1.Segmentation", handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"grpc://127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


SERVERS = {"rest": http_server, "grpc": grpc_server}


class Drawn:
    """A labeller without a model: class 1 everywhere."""

    name, version, identity = "drawn", "1", "drawn 1"
    classes: tuple[ClassInfo, ...] = (
        ClassInfo(0, "a", (1, 2, 3)),
        ClassInfo(1, "b", (4, 5, 6)),
    )

    def __init__(self, before: Callable[[int], None] = lambda n: None) -> None:
        self.before, self.calls = before, 0

    def __call__(self, body: bytes) -> bytes:
        self.calls += 1
        self.before(self.calls)
        with Image.open(io.BytesIO(body)) as image:
            labels = Image.new("P", image.size, 1)
        labels.putpalette(bytes(768))
        return encode(labels)

    def close(self) -> None:
        pass
