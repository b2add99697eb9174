"""API keys: who is let in, over REST and gRPC, and what stays open to everybody."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from fcn_client import FcnClient, NotAuthenticated
from fcn_client.stubs import segmentation_pb2 as pb
from service.api.stubs import inference_pb2 as oip
from service.api.stubs import inference_pb2_grpc as oip_grpc
from tests.contract.conftest import ADMIN_KEY
from tests.contract.oip import Request
from tests.contract.test_openapi import check, operations, schemathesis
from tests.drawing import png, street
from tests.serving import Server, running
from tests.tiny_models import expected_label_map, write_model
from tests.waiting import until

ALICE, BOB = "alice-has-this-key", "bob+has/another=1"
GOOD = png(street())
REFUSED = 'fcn_rejected_total{reason="unauthenticated"}'
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
REPOSITORY = ("index", "models/tiny/load")
CLOSED = (
    ("POST", "/segment"),
    ("GET", "/segment"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/v2"),
    ("GET", "/v2/models/stats"),
    ("GET", "/v2/models/tiny"),
    ("GET", "/v2/models/tiny/ready"),
    ("GET", "/v2/models/tiny/config"),
    ("GET", "/v2/models/tiny/stats"),
    ("GET", "/v2/models/tiny/versions/1"),
    ("GET", "/v2/models/tiny/versions/1/ready"),
    ("GET", "/v2/models/tiny/versions/1/config"),
    ("GET", "/v2/models/tiny/versions/1/stats"),
    ("POST", "/v2/models/tiny/infer"),
    ("POST", "/v2/models/tiny/versions/1/infer"),
    ("GET", "/v2/health"),
    ("GET", "/nope"),
    ("GET", "/livez/"),
)
OPEN = (
    *("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"),
    *("/", "/docs", "/status", "/openapi.json", "/web/index.html", "/web/swagger/swagger-ui.css"),
)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# who may\nalice {ALICE}\nbob {BOB}\n")
    return path


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[Server]:
    repository: Path = tmp_path_factory.mktemp("models")
    write_model(repository, logits=True)
    with running(repository, api_keys_file=key_file, admin_key=ADMIN_KEY) as server:
        yield server
        for key in (ALICE, BOB, ADMIN_KEY):
            assert key not in server.log()


def assert_refused(reply: httpx.Response, path: str, words: str = "X-API-Key: KEY") -> None:
    assert reply.status_code == 401, reply.text
    assert reply.headers["www-authenticate"] == 'Bearer realm="fcn-serve"'
    body = reply.json()
    if path.startswith("/v2"):
        assert list(body) == ["error"]
        assert words in body["error"]
    else:
        assert reply.headers["content-type"] == "application/problem+json"
        assert body["type"] == "urn:fcn:problem:not-authenticated"
        assert words in body["detail"]
        assert body["request_id"] == reply.headers["x-request-id"]


def assert_unauthenticated(error: pytest.ExceptionInfo[grpc.RpcError]) -> None:
    assert isinstance(error.value, grpc.Call)
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "API key" in (error.value.details() or "")
    assert dict(error.value.trailing_metadata() or ())["x-request-id"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": "wrong"},
        {"X-API-Key": ""},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {ALICE}"},
        {"Authorization": ALICE},
        {"Authorization": "Bearer"},
        {"X-API-Key": ADMIN_KEY},
        ADMIN,
    ],
)
def test_without_a_key_nothing_is_answered(keyed: Server, headers: dict[str, str]) -> None:
    """Nor with the admin key, which is for other things."""
    before = keyed.metric(REFUSED)
    # From an address of its own: so many wrong keys from one are slowed.
    transport = httpx.HTTPTransport(local_address=f"127.0.1.{1 + len(str(headers)) % 250}")
    with httpx.Client(base_url=keyed.url, transport=transport) as client:
        for method, path in CLOSED:
            content = GOOD if method == "POST" else None
            reply = client.request(method, path, headers=headers, content=content)
            assert_refused(reply, path)
    keyed.settles(REFUSED, before + len(CLOSED))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_a_key(keyed: Server, scheme: str) -> None:
    both = {"Authorization": "Basic of-a-proxy", "X-API-Key": BOB}
    for headers in ({"Authorization": f"{scheme} {ALICE}"}, {"X-API-Key": BOB}, both):
        reply = keyed.rest.post("/segment", content=GOOD, headers=headers)
        assert reply.status_code == 200
        for path in ("/v1/models", "/v2", "/v2/models/tiny/config"):
            assert keyed.rest.get(path, headers=headers).status_code == 200
        with httpx.Client(base_url=keyed.url, headers=headers) as client:
            assert Request().post(client).status_code == 200
        assert keyed.rest.get("/nope", headers=headers).status_code == 404


@pytest.mark.parametrize("path", OPEN)
def test_what_is_open(keyed: Server, path: str) -> None:
    accept = {"Accept": "text/html"} if path == "/" else {}
    for headers in ({}, {"X-API-Key": "wrong"}):
        assert keyed.rest.get(path, headers={**headers, **accept}).status_code == 200


def test_every_address_is_either(keyed: Server, server: Server) -> None:
    """None is forgotten: those of the page, and the ones above."""
    paths = server.rest.get("/openapi.json").json()["paths"]
    real = {re.sub(r"{(model|name)}", "tiny", path.replace("{version}", "1")) for path in paths}
    repository = {f"/v2/repository/{end}" for end in (*REPOSITORY, "models/tiny/unload")}
    assert real <= {path for _, path in CLOSED} | set(OPEN) | repository


def test_refused_before_the_upload_is_read(keyed: Server) -> None:
    for path in (b"/segment", b"/v2/models/tiny/infer"):
        with socket.create_connection(keyed.http_address, timeout=10) as link:
            link.sendall(
                b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nX-API-Key: wrong\r\n"
                b"Expect: 100-continue\r\nContent-Length: 20000000\r\n\r\n"
            )
            assert link.recv(65536).startswith(b"HTTP/1.1 401 "), "and not 100 Continue"


def test_the_callers_name_is_logged_and_counted(keyed: Server) -> None:
    series = 'fcn_caller_requests_total{caller="alice"}'
    before = keyed.metric(series)
    headers = {"X-API-Key": ALICE, "X-Request-ID": "rest-by-alice"}
    keyed.rest.post("/segment", content=GOOD, headers=headers)
    metadata = (("x-api-key", ALICE), ("x-request-id", "grpc-by-alice"))
    keyed.stub.Segment(pb.SegmentRequest(image=GOOD), metadata=metadata, timeout=30)
    item = pb.SegmentStreamRequest(id="1", request=pb.SegmentRequest(image=GOOD))
    list(keyed.stub.SegmentStream(iter([item]), metadata=metadata, timeout=30))
    keyed.rest.get("/v1/models", headers={"X-Request-ID": "by-nobody"})
    # Of the stream, the image and the call.
    keyed.settles(series, before + 4)
    until(lambda: "request_id=by-nobody" in keyed.log(), keyed.log)
    lines = keyed.log().splitlines()
    for request_id in ("rest-by-alice", "grpc-by-alice", "grpc-by-alice/1"):
        assert any(f"request_id={request_id} " in x and "caller=alice" in x for x in lines)
    (line,) = (line for line in lines if "request_id=by-nobody" in line)
    assert " 401 " in line and "caller=" not in line


def calls(server: Server) -> list[tuple[Any, Any]]:
    """Every call of both services that takes an API key, and something to send."""
    stub = oip_grpc.GRPCInferenceServiceStub(server.channel)
    infer = Request().message()
    item = pb.SegmentStreamRequest(id="1", request=pb.SegmentRequest(image=GOOD))
    return [
        (server.stub.Segment, pb.SegmentRequest(image=GOOD)),
        (server.stub.ListModels, pb.ListModelsRequest()),
        (lambda m, **o: list(server.stub.SegmentStream(iter([m]), **o)), item),
        (stub.ServerLive, oip.ServerLiveRequest()),
        (stub.ServerReady, oip.ServerReadyRequest()),
        (stub.ServerMetadata, oip.ServerMetadataRequest()),
        (stub.ModelReady, oip.ModelReadyRequest(name="tiny")),
        (stub.ModelMetadata, oip.ModelMetadataRequest(name="tiny")),
        (stub.ModelConfig, oip.ModelConfigRequest(name="tiny")),
        (stub.ModelStatistics, oip.ModelStatisticsRequest(name="tiny")),
        (stub.ModelInfer, infer),
        (lambda m, **o: list(stub.ModelStreamInfer(iter([m]), **o)), infer),
    ]


def test_grpc(keyed: Server) -> None:
    before = keyed.metric(REFUSED)
    wrong = (
        (),
        (("x-api-key", "wrong"),),
        (("authorization", f"Bearer {ADMIN_KEY}"),),
        (("authorization", f"Basic {ALICE}"),),
    )
    for metadata in wrong:
        for call, message in calls(keyed):
            with pytest.raises(grpc.RpcError) as caught:
                call(message, metadata=metadata, timeout=30)
            assert_unauthenticated(caught)
    keyed.settles(REFUSED, before + len(wrong) * len(calls(keyed)))
    refused = (
        'fcn_requests_total{code="UNAUTHENTICATED",method="Segment",model="",transport="grpc"}'
    )
    keyed.wait_for(refused, len(wrong))
    for metadata in ((("x-api-key", BOB),), (("authorization", f"bearer {ALICE}"),)):
        for call, message in calls(keyed):
            assert call(message, metadata=metadata, timeout=30)


def test_no_call_is_forgotten(keyed: Server) -> None:
    ours = [*pb.DESCRIPTOR.services_by_name.values(), *oip.DESCRIPTOR.services_by_name.values()]
    methods = sum(len(service.methods) for service in ours)
    assert len(calls(keyed)) + len(("index", "load", "unload")) == methods


def test_grpc_is_refused_before_a_message_is_read(keyed: Server) -> None:
    """The caller's side never sends one."""
    call = keyed.channel.stream_unary(
        "/segmentation.v1.Segmentation/Segment",
        request_serializer=pb.SegmentRequest.SerializeToString,
        response_deserializer=pb.SegmentResponse.FromString,
    )

    def nothing() -> Iterator[pb.SegmentRequest]:
        time.sleep(20)
        yield pb.SegmentRequest()

    with pytest.raises(grpc.RpcError) as caught:
        call(nothing(), timeout=10)
    assert_unauthenticated(caught)


def test_health_and_reflection_are_open(keyed: Server) -> None:
    health = health_pb2_grpc.HealthStub(keyed.channel)
    for service in ("", "segmentation.v1.Segmentation", "inference.GRPCInferenceService"):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    services = ProtoReflectionDescriptorDatabase(keyed.channel).get_services()
    assert "segmentation.v1.Segmentation" in services


def test_an_unknown_call_is_told_only_to_whom_a_key_lets_in(keyed: Server) -> None:
    call = keyed.channel.unary_unary("/segmentation.v1.Segmentation/Nope", None, None)
    for metadata, code in (
        ((), grpc.StatusCode.UNAUTHENTICATED),
        ((("x-api-key", ALICE),), grpc.StatusCode.UNIMPLEMENTED),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=30, metadata=metadata)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is code


def test_the_admin_key_opens_what_it_did_and_nothing_else_does(keyed: Server) -> None:
    both = {**ADMIN, "X-API-Key": ALICE}
    for headers in (ADMIN, both):
        for path in REPOSITORY:
            reply = keyed.rest.post(f"/v2/repository/{path}", headers=headers)
            assert reply.status_code == 200
    assert keyed.rest.post("/segment", content=GOOD, headers=both).status_code == 200
    for headers in ({}, {"X-API-Key": ALICE}, {"Authorization": f"Bearer {ALICE}"}):
        for path in REPOSITORY:
            reply = keyed.rest.post(f"/v2/repository/{path}", headers=headers)
            assert_refused(reply, "/v2", "the admin key is missing or wrong")
    stub = oip_grpc.GRPCInferenceServiceStub(keyed.channel)
    load = oip.RepositoryModelLoadRequest(model_name="tiny")
    index = oip.RepositoryIndexRequest()
    admin = (("authorization", f"Bearer {ADMIN_KEY}"),)
    for metadata in (admin, (*admin, ("x-api-key", ALICE))):
        assert stub.RepositoryIndex(index, metadata=metadata, timeout=30).models
        stub.RepositoryModelLoad(load, metadata=metadata, timeout=30)
    for wrong in ((), (("x-api-key", ALICE),), (("authorization", f"Bearer {ALICE}"),)):
        for call, message in ((stub.RepositoryIndex, index), (stub.RepositoryModelLoad, load)):
            with pytest.raises(grpc.RpcError) as caught:
                call(message, metadata=wrong, timeout=30)
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "admin key" in (caught.value.details() or "")


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_our_own_client(keyed: Server, transport: str) -> None:
    url = keyed.url if transport == "rest" else f"grpc://{keyed.target}"
    rgb = street()
    with FcnClient(url, api_key=ALICE) as client:
        assert (client.segment(rgb).value == expected_label_map(rgb)).all()
        assert [model.name for model in client.models()] == ["tiny"]
        if transport == "grpc":
            assert [outcome.ok for outcome in client.segment_stream([rgb] * 3)] == [True] * 3
    for wrong in (None, "a-key-of-nobody-here"):
        with FcnClient(url, api_key=wrong) as client:
            assert client.ready()
            calls: list[Callable[[], object]] = [client.models, lambda c=client: c.segment(rgb)]  # type: ignore[misc]
            if transport == "grpc":
                calls.append(lambda c=client: list(c.segment_stream([rgb])))  # type: ignore[misc]
            for call in calls:
                with pytest.raises(NotAuthenticated, match="X-API-Key: KEY") as raised:
                    call()
                assert (raised.value.status, raised.value.attempts) == (401, 1)


def test_the_page_says_what_needs_a_key(keyed: Server, server: Server) -> None:
    page, without = (s.rest.get("/openapi.json").json() for s in (keyed, server))
    schemes = page["components"]["securitySchemes"]
    assert (schemes["bearer"]["scheme"], schemes["apiKey"]["name"]) == ("bearer", "X-API-Key")
    assert without["components"]["securitySchemes"] == schemes
    ways: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}]
    for found, has_keys in ((page, True), (without, False)):
        for name, operation in operations(found).items():
            path = name.partition(" ")[2]
            repository = path.startswith("/v2/repository/")
            needs_key = repository or has_keys and path not in OPEN
            assert operation.get("security") == (ways if needs_key else None), name
            assert ("401" in operation["responses"]) == needs_key, name
    answer = page["paths"]["/segment"]["post"]["responses"]["401"]
    assert "WWW-Authenticate" in answer["headers"]
    content = answer["content"]["application/problem+json"]
    found = keyed.rest.post("/segment").json()
    example = content["examples"]["not-authenticated"]["value"]
    check(page, content["schema"], found)
    for field in ("type", "title", "status", "detail"):
        assert found[field] == example[field]


def test_schemathesis(key_file: Path, tmp_path: Path) -> None:
    """It sends the key, and, in a check of its own, leaves it out and sends a wrong one.

    To a server of its own, which has not had so many wrong ones yet that it slows them.
    """
    write_model(tmp_path / "models", logits=True)
    with running(tmp_path / "models", api_keys_file=key_file) as keyed:
        _schemathesis(keyed, tmp_path)


def _schemathesis(keyed: Server, tmp_path: Path) -> None:
    series = (REFUSED, 'fcn_caller_requests_total{caller="alice"}')
    before = [keyed.metric(name) for name in series]
    more = f"""
[[operations]]
include-path-regex = "^/v2"
enabled = false  # the wrong keys of so many addresses would be taken for guesses

[auth.openapi.apiKey]
api_key = "{ALICE}"
"""
    assert schemathesis(keyed, tmp_path, 1, more)
    for name, n in zip(series, before, strict=True):
        keyed.wait_for(name, n + 1)
