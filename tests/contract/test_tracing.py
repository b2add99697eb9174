"""Spans as OpenTelemetry's collectors get them, and traces in the log, of a real server."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fcn_client.stubs import segmentation_pb2 as pb
from service.api.call import Calls
from service.api.stubs import inference_pb2, inference_pb2_grpc
from service.errors import StartError
from service.telemetry import Telemetry
from service.tracing import Tracing, trace_of_caller
from tests.drawing import png, street
from tests.otlp import Receiver, attributes, over_grpc, over_http
from tests.serving import Server, running, write_slow_model
from tests.tiny_models import write_model
from tests.waiting import until

IMAGE = png(street())
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
Headers = dict[str, str]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model(folder)
    write_slow_model(folder)
    write_slow_model(folder, "late")
    return folder


@contextmanager
def tracing(repository: Path, endpoint: str, **variables: str) -> Iterator[Server]:
    """Runs a server that makes spans of what its callers have sampled, and of nothing else."""
    chosen = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=tests",
        **variables,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OTEL_SERVICE_NAME", raising=False)
        for name, value in chosen.items():
            patch.setenv(name, value)
        settings = {"default_model": "tiny", "instances": 1, "max_batch": 8}
        with running(repository, tracing="otlp", log_format="json", **settings) as server:
            yield server


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with over_http() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def traced(repository: Path, receiver: Receiver) -> Iterator[Server]:
    with tracing(repository, receiver.url) as server:
        yield server


def rest(server: Server, headers: Headers) -> None:
    server.rest.post("/segment", content=IMAGE, headers=headers).raise_for_status()


def grpc(server: Server, headers: Headers) -> None:
    server.stub.Segment(pb.SegmentRequest(image=IMAGE), metadata=tuple(headers.items()))


def oip_rest(server: Server, headers: Headers) -> None:
    headers = {**headers, "Inference-Header-Content-Length": "0"}
    server.rest.post("/v2/models/tiny/infer", content=IMAGE, headers=headers).raise_for_status()


def oip_grpc(server: Server, headers: Headers) -> None:
    request = inference_pb2.ModelInferRequest(model_name="tiny")
    image = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    image.contents.bytes_contents.append(IMAGE)
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
    stub.ModelInfer(request, metadata=tuple(headers.items()))


def parent(trace_id: str, sampled: bool = True) -> Headers:
    return {"traceparent": f"00-{trace_id}-{SPAN}-0{int(sampled)}"}


def logged(server: Server, name: str, value: str) -> dict[str, Any]:
    """The log line that has this, once it is there."""

    def lines() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in server.log().splitlines()]
        return [line for line in found if line.get(name) == value]

    until(lines, server.log)
    return lines()[0]


def named(spans: list[Span]) -> dict[str, Span]:
    return {span.name: span for span in spans}


@pytest.mark.parametrize(
    ("ask", "name", "said"),
    [
        (rest, "POST /segment", {"http.route": "/segment", "http.response.status_code": 200}),
        (grpc, "segmentation.v1.Segmentation/Segment", {"rpc.response.status_code": "OK"}),
        (oip_rest, "POST /v2/models/{name}/infer", {"url.path": "/v2/models/tiny/infer"}),
        (oip_grpc, "inference.GRPCInferenceService/ModelInfer", {"rpc.system.name": "grpc"}),
    ],
)
def test_the_tree_of_a_request(
    traced: Server,
    receiver: Receiver,
    ask: Callable[[Server, Headers], None],
    name: str,
    said: dict[str, object],
) -> None:
    trace_id = secrets.token_hex(16)
    ask(traced, parent(trace_id))
    spans = named(receiver.wait(trace_id, lambda spans: name in named(spans)))
    assert set(spans) == {name, "upload", "decode", "queue", "batch", "infer", "encode"}
    root = spans[name]
    assert root.parent_span_id.hex() == SPAN and root.kind == Span.SPAN_KIND_SERVER
    for child in set(spans) - {name, "infer"}:
        assert spans[child].parent_span_id == root.span_id
    assert spans["infer"].parent_span_id == spans["batch"].span_id
    assert [link.span_id for link in spans["batch"].links] == [root.span_id]
    order = ["upload", "decode", "queue", "batch", "encode"]
    moments = [spans[n].start_time_unix_nano for n in order] + [root.end_time_unix_nano]
    assert moments == sorted(moments) and moments[0] >= root.start_time_unix_nano - 1_000_000
    found = attributes(root)
    assert said.items() <= found.items() and found["fcn.model"] == "tiny"
    assert (found["fcn.image.height"], found["fcn.image.width"]) == street().shape[:2]
    assert receiver.resources[0]["service.name"] == "fcn-serve"
    assert receiver.resources[0]["deployment.environment.name"] == "tests"
    line = logged(traced, "trace_id", trace_id)
    assert line["span_id"] == root.span_id.hex()
    assert found["fcn.request_id"] == line["request_id"] == f"{trace_id}-{line['span_id']}"


def test_the_same_ids_in_answer_and_exemplar(traced: Server) -> None:
    trace_id = secrets.token_hex(16)
    answer = traced.rest.post("/segment", content=IMAGE, headers=parent(trace_id))
    assert answer.headers["x-request-id"].startswith(f"{trace_id}-")
    openmetrics = {"Accept": "application/openmetrics-text"}
    until(lambda: f'trace_id="{trace_id}"' in traced.rest.get("/metrics", headers=openmetrics).text)


def test_a_batch_links_its_members(traced: Server, receiver: Receiver) -> None:
    """The first image keeps the only instance busy, and those behind it share the next run."""
    image = png(street(seed=1) // np.uint8(2))

    def ask(trace_id: str) -> None:
        headers, query = parent(trace_id), {"model": "slow"}
        with httpx.Client(base_url=traced.url, timeout=60) as own:
            own.post("/segment", content=image, headers=headers, params=query).raise_for_status()

    traces = [secrets.token_hex(16) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, traces))
    batches = []
    for trace_id in traces:
        spans = named(receiver.wait(trace_id, lambda spans: "POST /segment" in named(spans)))
        links = {link.trace_id.hex() for link in spans["batch"].links}
        assert trace_id in links and links <= set(traces)
        assert attributes(spans["batch"])["fcn.batch.size"] == len(links)
        batches.append(links)
    assert max(map(len, batches)) > 1


def test_an_image_of_a_stream_is_part_of_it(traced: Server, receiver: Receiver) -> None:
    trace_id = secrets.token_hex(16)
    images = [pb.SegmentStreamRequest(id=n, request=pb.SegmentRequest(image=IMAGE)) for n in "ab"]
    metadata = tuple(parent(trace_id).items())
    assert len(list(traced.stub.SegmentStream(iter(images), metadata=metadata))) == 2
    whole = "segmentation.v1.Segmentation/SegmentStream"
    spans = receiver.wait(trace_id, lambda spans: whole in named(spans))
    parts = [span for span in spans if span.name == "Segment"]
    assert {span.parent_span_id for span in parts} == {named(spans)[whole].span_id}
    assert len(parts) == 2


def test_a_request_that_fails_tells_why_and_how_far_it_came(
    traced: Server, receiver: Receiver
) -> None:
    trace_id = secrets.token_hex(16)
    white = png(np.full_like(street(), 255))  # takes the slow models most of a second
    path = "/segment?model=late&deadline_ms=300"
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(
            httpx.post, f"{traced.url}/segment?model=late", content=white, timeout=60
        )
        until(lambda: traced.metric("fcn_inflight_requests") > 0)
        answer = traced.rest.post(path, content=white, headers=parent(trace_id))
        busy.result()
    assert answer.status_code == 504
    spans = named(receiver.wait(trace_id, lambda spans: "POST /segment" in named(spans)))
    assert {"decode", "queue"} <= set(spans)
    root = spans["POST /segment"]
    assert root.status.code == root.status.STATUS_CODE_ERROR
    assert attributes(root)["error.type"] == "deadline-exceeded"
    line = logged(traced, "trace_id", trace_id)
    assert line["kind"] == "deadline-exceeded" and line["queue_ms"] > 0


def test_probes_and_what_is_not_sampled_have_no_spans(traced: Server, receiver: Receiver) -> None:
    unsampled, probe, sampled = (secrets.token_hex(16) for _ in range(3))
    rest(traced, parent(unsampled, sampled=False))
    traced.rest.get("/readyz", headers=parent(probe))
    own = traced.rest.post("/segment", content=IMAGE).headers["x-request-id"].split("-")[0]
    rest(traced, parent(sampled))
    receiver.wait(sampled, lambda spans: "POST /segment" in named(spans))
    assert not [trace_id for trace_id in (unsampled, probe, own) if receiver.trace(trace_id)]
    assert logged(traced, "trace_id", own)["request_id"].startswith(own)


def test_over_grpc_and_what_is_left_at_the_end(repository: Path) -> None:
    """Nothing is exported before the server stops, which then waits for it."""
    trace_id = secrets.token_hex(16)
    variables = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with over_grpc() as receiver, tracing(repository, receiver.url, **variables) as server:
        rest(server, parent(trace_id))
        assert receiver.trace(trace_id) == []
        assert server.stop() == 0
        assert "batch" in named(receiver.trace(trace_id))


def test_nobody_notices_an_exporter_that_hangs(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and answers none
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        sampler = {"OTEL_TRACES_SAMPLER_ARG": "1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        with tracing(repository, url, **sampler) as server:
            for _ in range(50):
                rest(server, {})
            began_s = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
            assert time.monotonic() - began_s < 20
            assert "spans could not be exported in time" in server.log()


def test_an_exporter_that_is_down_says_so_once(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with tracing(repository, url, OTEL_TRACES_SAMPLER_ARG="1") as server:
        for _ in range(3):
            rest(server, {})
            until(lambda: "opentelemetry" in server.log(), server.log)
        lines = [line for line in server.log().splitlines() if "opentelemetry.exporter" in line]
    assert len(lines) == 1 and "refused" in lines[0]


@pytest.mark.parametrize(
    ("traceparent", "kept"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-comes", True),
        (f"00-{TRACE}-{SPAN}-01-more", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        ("x", False),
        (None, False),
    ],
)
def test_a_callers_trace(traceparent: str | None, kept: bool) -> None:
    found = trace_of_caller(traceparent)
    assert (found is not None and found.trace_id == TRACE) is kept


def test_a_callers_trace_is_logged_without_tracing(server: Server) -> None:
    answer = server.rest.post("/segment", content=IMAGE, headers=parent(TRACE))
    request_id = answer.headers["x-request-id"]
    assert request_id.startswith(f"{TRACE}-")
    said = f" outcome=answered trace_id={TRACE} model=tiny height=24 width=32 decode_ms="
    until(lambda: said in server.log().partition(f"request_id={request_id} ")[2], server.log)


def test_a_fault_of_tracing_costs_no_request(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")  # whatever the server of the module has
    tracing = Tracing("grpc", InMemorySpanExporter())
    calls = Calls(
        Telemetry(0.175), None, deadline_s=30, model_label=lambda name: "", tracing=tracing
    )

    def fault() -> dict[str, str]:
        raise KeyError

    with calls.begin("rest", "Segment", describe=fault):
        pass
    assert "spans could not be made" in caplog.text
    assert tracing.close()


def test_a_start_says_what_tracing_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartError, match="http/protobuf, grpc"):
        Tracing("http/json")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(StartError, match=r"pip install 'fcn-serve\[otel\]'"):
        Tracing("grpc")
