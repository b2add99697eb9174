"""Limits by key, roles and wrong keys, over REST, gRPC and the Open Inference Protocol alike."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from fcn_client import FcnClient, LimitExceeded, RetryPolicy
from fcn_client.stubs import segmentation_pb2 as pb
from service.api.limits import FREE_GUESSES
from service.api.stubs import inference_pb2 as oip
from service.api.stubs import inference_pb2_grpc as oip_grpc
from tests.contract.oip import Request
from tests.drawing import png, street
from tests.serving import ROOT, Server, environment, running, write_slow_model
from tests.tiny_models import write_model
from tests.waiting import until

GOOD = png(street())
PIXELS = street().shape[0] * street().shape[1]
SLOW = "requests_s=0.001"


def new_key(path: Path, *words: str) -> str:
    """A key that the command writes into the file."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "keys", "add", *words, f"--file={path}"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys by name: one for each test that spends a limit."""
    path: Path = tmp_path_factory.mktemp("keys") / "keys"
    once = "--requests-s=0.001"
    found = {name: new_key(path, name, once) for name in ("rest", "grpc", "oip", "client")}
    few = f"--megapixels-s={PIXELS / 1e6 / 1000}"
    found |= {name: new_key(path, name, few) for name in ("rest-px", "grpc-px", "oip-px")}
    found["two"] = new_key(path, "two", "--in-flight=2")
    found["free"] = new_key(path, "free")
    found["ops"] = new_key(path, "ops", "--role=admin")
    found["both"] = new_key(path, "both", "--role=admin", "--role=predict")
    return {**found, "file": str(path)}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str]) -> Iterator[Server]:
    repository: Path = tmp_path_factory.mktemp("models")
    write_model(repository, logits=True)
    write_slow_model(repository)
    with running(repository, default_model="tiny", api_keys_file=keys["file"]) as server:
        yield server
        log = server.log()
        assert not [name for name, key in keys.items() if name != "file" and key in log]


def details(error: grpc.RpcError) -> tuple[str, int]:
    """Reason and seconds to wait, out of the status details."""
    assert isinstance(error, grpc.Call)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in rpc_status.from_call(error).details:
        assert detail.Unpack(info) or detail.Unpack(retry)
    return info.reason, retry.retry_delay.seconds


def rest(server: Server, key: str) -> httpx.Response:
    return server.rest.post("/segment", content=GOOD, headers={"X-API-Key": key})


def oip_rest(server: Server, key: str) -> httpx.Response:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": key}) as client:
        return Request().post(client)


def segment(server: Server, key: str) -> Any:
    message, metadata = pb.SegmentRequest(image=GOOD), (("x-api-key", key),)
    return server.stub.Segment(message, metadata=metadata, timeout=30)


def infer(server: Server, key: str) -> Any:
    stub = oip_grpc.GRPCInferenceServiceStub(server.channel)
    return stub.ModelInfer(Request().message(), metadata=(("x-api-key", key),), timeout=30)


@pytest.mark.parametrize(
    ("name", "limit", "wait_s"), [("rest", "requests", 1000), ("rest-px", "pixels", 1000)]
)
def test_rest(limited: Server, keys: dict[str, str], name: str, limit: str, wait_s: int) -> None:
    first, second = rest(limited, keys[name]), rest(limited, keys[name])
    assert (first.status_code, second.status_code) == (200, 429), second.text
    for reply in (first, second):
        assert reply.headers["ratelimit-policy"].startswith(f'"{limit}";q=')
        assert reply.headers["ratelimit"].startswith(f'"{limit}";r=0;t=')
    assert abs(int(second.headers["retry-after"]) - wait_s) <= 10
    assert second.json()["type"] == "urn:fcn:problem:limit-exceeded"
    assert "a second: retry in" in second.json()["detail"]
    limited.settles(f'fcn_limited_total{{caller="{name}",limit="{limit}"}}', 1)


def test_no_headers_without_a_limit(limited: Server, keys: dict[str, str]) -> None:
    for _ in range(20):
        reply = rest(limited, keys["free"])
        assert reply.status_code == 200
        assert not [name for name in reply.headers if name.startswith("ratelimit")]


@pytest.mark.parametrize(
    ("name", "call"),
    [("grpc", segment), ("grpc-px", segment), ("oip", infer), ("oip-px", infer)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grpc(
    limited: Server, keys: dict[str, str], name: str, call: Callable[[Server, str], Any]
) -> None:
    assert call(limited, keys[name])
    with pytest.raises(grpc.RpcError) as caught:
        call(limited, keys[name])
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    reason, wait_s = details(caught.value)
    assert reason == "limit-exceeded" and wait_s > 900
    pushback = dict(caught.value.trailing_metadata() or ())["grpc-retry-pushback-ms"]
    assert int(pushback) == 1000 * wait_s
    if name.startswith("oip"):  # one caller, whichever transport
        reply = oip_rest(limited, keys[name])
        assert reply.status_code == 429 and "a second" in reply.json()["error"]


def test_the_images_of_a_stream_are_requests(limited: Server, keys: dict[str, str]) -> None:
    """And the stream itself is none, which would take the room of its own images."""
    metadata = (("x-api-key", keys["grpc-px"]),)
    items = [
        pb.SegmentStreamRequest(id=str(n), request=pb.SegmentRequest(image=GOOD)) for n in range(3)
    ]
    answers = list(limited.stub.SegmentStream(iter(items), metadata=metadata, timeout=30))
    kinds = sorted(answer.error.type for answer in answers)
    assert kinds[1:] == ["urn:fcn:problem:limit-exceeded"] * 2
    metadata = (("x-api-key", keys["two"]),)
    for answer in limited.stub.SegmentStream(iter(items[:2]), metadata=metadata, timeout=30):
        assert answer.HasField("response"), answer


def test_requests_at_once(limited: Server, keys: dict[str, str]) -> None:
    headers, slow = {"X-API-Key": keys["two"]}, png(street(40, 56) * 0 + 255)
    running: list[threading.Thread] = []
    codes: list[int] = []

    def ask() -> None:
        reply = httpx.post(
            f"{limited.url}/segment?model=slow", content=slow, headers=headers, timeout=60
        )
        codes.append(reply.status_code)

    for _ in range(2):
        running.append(threading.Thread(target=ask))
        running[-1].start()
    until(lambda: limited.metric("fcn_inflight_requests") >= 2 or len(codes) == 2, lambda: "")
    reply = rest(limited, keys["two"])
    for thread in running:
        thread.join()
    assert codes == [200, 200]
    assert reply.status_code == 429, "raise the slow model's turns if it was done before"
    assert reply.headers["ratelimit"] == '"in_flight";r=0'
    assert "2 requests at once" in reply.json()["detail"]
    assert rest(limited, keys["two"]).status_code == 200


def test_our_client_says_so(limited: Server, keys: dict[str, str]) -> None:
    with FcnClient(
        limited.url, api_key=keys["client"], retry=RetryPolicy(max_attempts=1)
    ) as client:
        client.segment(street())
        with pytest.raises(LimitExceeded, match="retry in") as caught:
            client.segment(street())
    assert caught.value.retryable and caught.value.retry_after_s


def test_the_role_admin(limited: Server, keys: dict[str, str]) -> None:
    """Over REST and gRPC; a server needs no other admin key."""
    stub = oip_grpc.GRPCInferenceServiceStub(limited.channel)
    for name, admin, predict in (("ops", 200, 401), ("both", 200, 200), ("free", 401, 200)):
        headers = {"X-API-Key": keys[name]}
        for verb in ("index", "models/tiny/load"):
            reply = limited.rest.post(f"/v2/repository/{verb}", headers=headers)
            assert reply.status_code == admin, (name, reply.text)
        assert rest(limited, keys[name]).status_code == predict
        metadata = (("authorization", f"Bearer {keys[name]}"),)
        index = oip.RepositoryIndexRequest()
        if admin == 200:
            assert stub.RepositoryIndex(index, metadata=metadata, timeout=30).models
        else:
            with pytest.raises(grpc.RpcError) as caught:
                stub.RepositoryIndex(index, metadata=metadata, timeout=30)
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_admin_port_takes_administration_away_from_the_others(tmp_path: Path) -> None:
    """Whoever holds the key: it is refused unread, so nobody guesses it from outside."""
    write_model(tmp_path / "models")
    key = "an operator's key for tests"
    with running(tmp_path / "models", host="0.0.0.0", admin_port=0, admin_key=key) as server:
        port = server.admin_url.removeprefix("http://127.0.0.1:")
        where = f"from its own machine alone, over REST: send this to port {port} of 127.0.0.1"
        for offered in (key, "wrong"):
            reply = server.rest.post("/v2/repository/index", headers={"X-API-Key": offered})
            assert (reply.status_code, where in reply.text) == (403, True)
        stub = oip_grpc.GRPCInferenceServiceStub(server.channel)
        with pytest.raises(grpc.RpcError, match=where) as caught:
            request = oip.RepositoryModelUnloadRequest(model_name="tiny")
            stub.RepositoryModelUnload(request, metadata=(("x-api-key", key),), timeout=30)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert server.metric("fcn_wrong_keys_total") == 0
        with httpx.Client(base_url=server.admin_url, headers={"X-API-Key": key}) as admin:
            for verb in ("models/tiny/unload", "models/tiny/load", "index"):
                assert admin.post(f"/v2/repository/{verb}").status_code == 200
            assert admin.post("/v2/repository/index", headers={"X-API-Key": "wrong"}).is_error


def test_a_key_that_is_revoked_is_refused(limited: Server, keys: dict[str, str]) -> None:
    path = Path(keys["file"])
    key = new_key(path, "gone")
    until(lambda: rest(limited, key).status_code == 200, limited.log)
    command = [sys.executable, "-m", "cli.main", "keys", "revoke", "gone", f"--file={path}"]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True)
    until(lambda: rest(limited, key).status_code != 200, limited.log)
    assert rest(limited, key).status_code in (401, 429), "it is a wrong one now, and asked often"
    assert rest(limited, keys["free"]).status_code == 200


def test_who_guesses_is_told_to_wait(limited: Server, keys: dict[str, str]) -> None:
    """Over both transports together, and the right key of a neighbour goes on."""
    before = limited.metric("fcn_wrong_keys_total")
    transport = httpx.HTTPTransport(local_address="127.0.2.1")
    with httpx.Client(base_url=limited.url, transport=transport) as client:
        replies = list[httpx.Response]()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            headers = {"X-API-Key": f"wrong-key-{len(replies)}"}
            replies.append(client.post("/segment", content=GOOD, headers=headers))
            if replies[-1].status_code == 429:
                break
        assert [reply.status_code for reply in replies[:FREE_GUESSES]] == [401] * FREE_GUESSES
        assert replies[-1].status_code == 429
        assert replies[-1].json()["type"] == "urn:fcn:problem:limit-exceeded"
        assert "retry-after" in replies[-1].headers
        headers = {"X-API-Key": keys["free"]}
        assert client.post("/segment", content=GOOD, headers=headers).status_code == 200
        assert client.post("/segment", content=GOOD).status_code == 401, "no key is no guess"
    assert limited.metric("fcn_wrong_keys_total") >= before + FREE_GUESSES + 1
    assert limited.metric('fcn_rejected_total{reason="guesses"}') >= 1


def test_without_keys_the_limits_are_of_each_address(tmp_path: Path) -> None:
    write_model(tmp_path)
    with running(tmp_path, limits="requests_s=0.001") as server:
        assert server.rest.post("/segment", content=GOOD).status_code == 200
        assert server.rest.post("/segment", content=GOOD).status_code == 429
        with pytest.raises(grpc.RpcError) as caught:
            server.stub.Segment(pb.SegmentRequest(image=GOOD), timeout=30)
        assert details(caught.value)[0] == "limit-exceeded"
        assert server.rest.get("/readyz").status_code == 200, "probes are nobody's requests"
        transport = httpx.HTTPTransport(local_address="127.0.2.2")
        with httpx.Client(base_url=server.url, transport=transport) as client:
            assert client.post("/segment", content=GOOD).status_code == 200
        server.settles('fcn_limited_total{caller="anonymous",limit="requests"}', 2)
