"""The Open Inference Protocol: loads at once, a thousand ids in flight, callers who leave."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from service.api.stubs import inference_pb2 as pb
from service.api.stubs import inference_pb2_grpc as pb_grpc
from tests.contract.oip import Request
from tests.drawing import UInt8Array
from tests.fault.conftest import INFLIGHT, PATIENT
from tests.serving import Server, running, write_slow_model
from tests.tiny_models import write_model
from tests.waiting import until

KEY = "an operator's key for tests"
REST_ADMIN = {"Authorization": f"Bearer {KEY}"}
GRPC_ADMIN = (("authorization", f"Bearer {KEY}"),)
CANCELLED = 'fcn_rejected_total{reason="cancelled"}'
IDS = 1000
WINDOW = 8
"""Images of one request that are under way at once."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`slow`, which takes half a second to load and 3 ms a step of red to answer; and `tiny`."""
    repository: Path = tmp_path_factory.mktemp("models")
    write_slow_model(repository, turns_at_least=150_000)
    write_model(repository)
    with running(repository, admin_key=KEY, instances=1, alone_threads=1, **PATIENT) as server:
        yield server


@pytest.fixture(autouse=True)
def _keeps_serving(server: Server) -> Iterator[None]:
    """After each test both models answer, nothing is left in flight, and nothing went wrong."""
    yield
    stub(server).RepositoryModelLoad(
        pb.RepositoryModelLoadRequest(model_name="slow"), metadata=GRPC_ADMIN, timeout=60
    )
    for model in ("slow", "tiny"):
        assert Request(model=model).post(server.rest).status_code == 200
    server.settles(INFLIGHT, 0)
    assert "Traceback" not in server.log()


def stub(server: Server) -> pb_grpc.GRPCInferenceServiceStub:
    return pb_grpc.GRPCInferenceServiceStub(server.channel)


def lasting(red: int, images: int = 1) -> Request:
    """For `slow`: about 3 ms for each step of `red`, above the 0.1 s that every image takes."""
    rgb = np.zeros((images, 8, 8, 3), np.uint8)
    rgb[:, 0, 0, 0] = red
    return Request(shape=rgb.shape, data=rgb.tobytes(), model="slow")


def over_rest(server: Server, what: str) -> None:
    with httpx.Client(base_url=server.url, timeout=60, headers=REST_ADMIN) as client:
        reply = client.post(f"/v2/repository/models/slow/{what}")
        assert (reply.status_code, reply.json()) == (200, {})


def over_grpc(server: Server, what: str) -> None:
    if what == "load":
        load = pb.RepositoryModelLoadRequest(model_name="slow")
        stub(server).RepositoryModelLoad(load, metadata=GRPC_ADMIN, timeout=60)
    else:
        unload = pb.RepositoryModelUnloadRequest(model_name="slow")
        stub(server).RepositoryModelUnload(unload, metadata=GRPC_ADMIN, timeout=60)


def state(server: Server) -> str:
    listed = server.rest.post("/v2/repository/index", headers=REST_ADMIN).json()
    (found,) = (entry["state"] for entry in listed if entry["name"] == "slow")
    return str(found)


def serving_lines(server: Server) -> int:
    return server.log().count("serving slow version 1")


# Loads at once


def test_loads_of_one_model_at_once_load_it_once(server: Server) -> None:
    over_rest(server, "unload")
    assert state(server) == "UNAVAILABLE"
    before = serving_lines(server)
    with ThreadPoolExecutor(6) as pool:
        loads = [pool.submit(way, server, "load") for way in (over_rest, over_grpc) * 3]
        until(lambda: state(server) == "LOADING")
        # Meanwhile it is not there yet, and the other one is.
        reply = lasting(0).post(server.rest)
        assert reply.status_code == 404
        assert "'slow'" in reply.json()["error"]
        assert Request().post(server.rest).status_code == 200
        for load in loads:
            load.result()
    assert state(server) == "READY"
    assert serving_lines(server) == before + 1


def test_a_load_while_an_unload_waits_for_requests_wins(server: Server) -> None:
    """The old one answers what it has; the new one is another, and stays."""
    with ThreadPoolExecutor(3) as pool:
        in_flight = pool.submit(lasting(255).post, server.rest)
        server.wait_for(INFLIGHT, 1)
        unload = pool.submit(over_rest, server, "unload")
        until(lambda: state(server) == "UNLOADING")
        assert lasting(0).post(server.rest).status_code == 404
        pool.submit(over_grpc, server, "load").result()
        assert state(server) == "READY"
        assert lasting(0).post(server.rest).status_code == 200
        assert in_flight.result().status_code == 200
        unload.result()
    assert state(server) == "READY"


def test_an_unload_while_it_loads_has_the_last_word(server: Server) -> None:
    over_grpc(server, "unload")
    with ThreadPoolExecutor(2) as pool:
        load = pool.submit(over_grpc, server, "load")
        until(lambda: state(server) == "LOADING")
        unload = pool.submit(over_rest, server, "unload")
        load.result()
        unload.result()
    assert state(server) == "UNAVAILABLE"
    assert lasting(0).post(server.rest).status_code == 404


def test_unloads_at_once(server: Server) -> None:
    """One does it; of the others, those that come too late are told that there is nothing."""
    calls = [partial(over_rest, server, "unload") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        ends = [done.exception() for done in [pool.submit(call) for call in calls]]
    assert ends.count(None) >= 1
    assert all(end is None or "404" in str(end) for end in ends)
    assert state(server) == "UNAVAILABLE"


# 1000 ids in flight


def images_of_ids() -> list[tuple[str, Request, UInt8Array]]:
    """An id, a request for `tiny`, and the right label map: each of three colours in turn."""
    found = []
    for n in range(IDS):
        rgb = np.zeros((1, 4, 5, 3), np.uint8)
        rgb[..., n % 3] = 1 + n % 250
        request = Request(shape=rgb.shape, data=rgb.tobytes())
        found.append((f"id-{n}", request, np.full((1, 4, 5), n % 3, np.uint8)))
    return found


def message(id: str, request: Request) -> pb.ModelInferRequest:
    found = request.message()
    found.id = id
    return found


def label_map(response: pb.ModelInferResponse) -> UInt8Array:
    (output,) = response.outputs
    return np.frombuffer(response.raw_output_contents[0], np.uint8).reshape(output.shape)


def test_a_thousand_ids_in_one_stream(server: Server) -> None:
    """All are sent before the first answer is read; a wrong one among them is told so."""
    asked = images_of_ids()
    messages = [message(id, request) for id, request, _ in asked]
    messages[500].outputs.add(name="masks")
    sent = threading.Event()

    def send() -> Iterator[pb.ModelInferRequest]:
        yield from messages
        sent.set()

    answers: Any = stub(server).ModelStreamInfer(send(), timeout=60)
    sent.wait(1)  # as far as the transport takes them
    seen = list(answers)
    assert [answer.infer_response.id for answer in seen] == [id for id, _, _ in asked]
    for n, (answer, (_, _, right)) in enumerate(zip(seen, asked, strict=True)):
        if n == 500:
            assert "'masks'" in answer.error_message
            continue
        assert not answer.error_message
        np.testing.assert_array_equal(label_map(answer.infer_response), right)


def test_a_thousand_ids_in_as_many_calls(server: Server) -> None:
    """Each gets its own answer, or is told to come again, and then gets it."""
    waiting = {id: (message(id, request), right) for id, request, right in images_of_ids()}
    for _ in range(50):
        calls = [
            (id, stub(server).ModelInfer.future(sent, timeout=60))
            for id, (sent, _) in waiting.items()
        ]
        for id, call in calls:
            if (error := call.exception()) is None:
                response = call.result()
                assert response.id == id
                np.testing.assert_array_equal(label_map(response), waiting.pop(id)[1])
                continue
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error.details()
            assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1000
        if not waiting:
            break
    assert not waiting


def test_a_thousand_ids_over_rest(server: Server) -> None:
    """Five on each of 200 connections, all sent before the first answer is read."""
    asked = images_of_ids()

    async def ask(some: list[tuple[str, Request, UInt8Array]], all_sent: asyncio.Barrier) -> int:
        reader, writer = await asyncio.open_connection(*server.http_address)
        writer.write(b"".join(http(id, request) for id, request, _ in some))
        await writer.drain()
        await all_sent.wait()
        refused = 0
        for id, _, right in some:
            status, headers, body = await read_reply(reader)
            if status == 429:
                assert list(json.loads(body)) == ["error"]
                assert int(headers["retry-after"]) >= 1
                refused += 1
                continue
            assert status == 200, body
            document = json.loads(body)
            assert document["id"] == id
            (output,) = document["outputs"]
            assert output["data"] == right.ravel().tolist()
        writer.close()
        return refused

    async def ask_all() -> int:
        barrier = asyncio.Barrier(200)
        async with asyncio.timeout(60):
            return sum(
                await asyncio.gather(*(ask(asked[n : n + 5], barrier) for n in range(0, IDS, 5)))
            )

    assert asyncio.run(ask_all()) < IDS


def http(id: str, request: Request) -> bytes:
    document = {
        "id": id,
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": list(request.shape),
                "data": list(request.data),
            }
        ],
    }
    body = json.dumps(document).encode()
    head = f"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    lines = (line.partition(":") for line in head[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in lines}
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, body


# Callers who leave


def held_open(*messages: pb.ModelInferRequest) -> Iterator[pb.ModelInferRequest]:
    """A stream that is not closed: gRPC asks for the next message on a thread of its own."""
    yield from messages
    threading.Event().wait(60)


def test_a_stream_whose_sending_side_is_closed_gets_its_answers(server: Server) -> None:
    messages = [message(str(n), lasting(10)) for n in range(3)]
    answers = list(stub(server).ModelStreamInfer(iter(messages), timeout=60))
    assert [answer.infer_response.id for answer in answers] == ["0", "1", "2"]


@pytest.mark.parametrize("how", ["cancel", "connection"])
def test_a_stream_that_is_left_half_way_drops_its_work(server: Server, how: str) -> None:
    """After the first answer; the second, of many images, is under way. A neighbour goes on."""
    before = server.metric(CANCELLED)
    beside = stub(server).ModelStreamInfer(
        iter([message("b", lasting(100)), message("c", lasting(100))]), timeout=60
    )
    with grpc.insecure_channel(server.target) as channel:
        messages = (
            message("0", lasting(0)),
            message("1", lasting(100, 40)),
            message("2", lasting(9)),
        )
        call = pb_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(
            held_open(*messages), timeout=60
        )
        assert next(call).infer_response.id == "0"
        server.wait_for(INFLIGHT, WINDOW)
        if how == "cancel":
            call.cancel()
        else:
            channel.close()
        server.wait_for(CANCELLED, before + 1)
    assert [answer.infer_response.id for answer in beside] == ["b", "c"]
    server.settles(INFLIGHT, 0)
    assert server.metric(CANCELLED) == before + 1, "the message once, for all its images"


def test_a_stream_past_its_deadline_drops_its_work(server: Server) -> None:
    call = stub(server).ModelStreamInfer(held_open(message("0", lasting(100, 40))), timeout=0.5)
    with pytest.raises(grpc.RpcError) as caught:
        for answer in call:
            assert answer.error_message, "it may be told before the deadline that it is too late"
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.settles(INFLIGHT, 0)


@pytest.mark.parametrize("sent", [10, -1])
def test_an_upload_that_is_left_half_way(server: Server, sent: int) -> None:
    """It ends in the JSON, or in the tensor behind it."""
    gone = 'fcn_requests_total{code="499",method="ModelInfer",model="tiny",transport="rest"}'
    before = server.metric(gone)
    head, body = built(Request())
    with socket.create_connection(server.http_address, timeout=10) as link:
        link.sendall(head + body[:sent])
    server.wait_for(gone, before + 1)


def built(request: Request) -> tuple[bytes, bytes]:
    """Head and body of what `request` would post."""
    found: list[httpx.Request] = []

    def keep(sent: httpx.Request) -> httpx.Response:
        found.append(sent)
        return httpx.Response(200)

    with httpx.Client(base_url="http://x", transport=httpx.MockTransport(keep)) as client:
        request.post(client)
    (sent,) = found
    lines = [f"{name}: {value}" for name, value in sent.headers.items()]
    head = "\r\n".join([f"POST {sent.url.path} HTTP/1.1", *lines, "", ""])
    return head.encode(), sent.content


def test_a_caller_who_hangs_up_drops_its_work(server: Server) -> None:
    before = server.metric(CANCELLED)
    link = socket.create_connection(server.http_address, timeout=10)
    link.sendall(b"".join(built(lasting(100, 40))))
    server.wait_for(INFLIGHT, WINDOW)
    link.close()
    server.wait_for(CANCELLED, before + 1)
    server.settles(INFLIGHT, 0)
    assert server.metric(CANCELLED) == before + 1, "the request once, for all its images"


def test_a_deadline_counts_once_for_all_images_of_a_request(slow_repository: Path) -> None:
    with running(slow_repository, deadline_ms=150, instances=2) as strict:

        def over_rest(asked: Request) -> bool:
            reply = asked.post(strict.rest)
            assert reply.status_code in (429, 504)
            return reply.status_code == 504

        def over_grpc(asked: Request) -> bool:
            with pytest.raises(grpc.RpcError) as caught:
                stub(strict).ModelInfer(asked.message())
            assert isinstance(caught.value, grpc.Call)
            code = caught.value.code()
            assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
            return code is grpc.StatusCode.DEADLINE_EXCEEDED

        # A run that nobody waits for goes on, and whoever comes meanwhile may be refused.
        for n, (ask, images) in enumerate(product((over_rest, over_grpc), (1, 3)), 1):
            until(partial(ask, lasting(255, images)))
            assert strict.metric('fcn_rejected_total{reason="deadline"}') == n
