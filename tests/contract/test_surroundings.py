"""Models, probes, metrics, health, reflection and the OpenAPI page."""

from __future__ import annotations

import json

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from fcn_client.stubs import segmentation_pb2 as pb
from model.contract import Contract
from tests.drawing import png, street
from tests.serving import Server
from tests.waiting import until

SERVICE = "segmentation.v1.Segmentation"
METRICS = {
    "fcn_requests": {"transport", "method", "model", "code"},
    "fcn_request_duration_seconds": {"transport", "model"},
    "fcn_stage_duration_seconds": {"stage", "model"},
    "fcn_slo_images": {"slo", "model", "result"},
    "fcn_batch_size": {"model"},
    "fcn_batches": {"model", "closed"},
    "fcn_queue_depth": {"model", "version"},
    "fcn_stuck_runs": {"model", "outcome"},
    "fcn_rejected": set(),  # {reason}, of all there are
    "fcn_caller_requests": set(),  # {caller}, once there is one
    "fcn_limited": set(),  # {caller, limit}, once there is one
    "fcn_wrong_keys": set(),
    "fcn_keys_stale": set(),
    "fcn_tls_certificate_stale": set(),
    "fcn_tls_certificate_expiry_timestamp_seconds": set(),
    "fcn_log_lines_dropped": set(),
    "fcn_inflight_requests": set(),
    "fcn_image_pixels": set(),
    "fcn_model_info": {"model", "version", "precision", "provider", "engine"},
    "fcn_model_load_failed": {"model", "version"},
    "fcn_engine_fallback": {"model", "version", "wanted"},
    "fcn_memory_limit_bytes": set(),
    "fcn_latency_target_pixels": set(),
    "fcn_latency_target_seconds": set(),
}


def test_models_over_both_transports(server: Server) -> None:
    listed = server.rest.get("/v1/models").json()["models"]
    assert [model["name"] for model in listed] == ["other", "tiny"]
    tiny = server.rest.get("/v1/models/tiny").json()
    assert tiny == listed[1]
    assert tiny["is_default"] and not listed[0]["is_default"]
    assert tiny["default_version"] == "2"
    assert (tiny["description"], listed[0]["description"]) == ("Drawn streets", "")
    assert [v["version"] for v in tiny["versions"]] == ["1", "2"]
    assert {v["state"] for v in tiny["versions"]} == {"ready"}

    models = server.stub.ListModels(pb.ListModelsRequest(), timeout=30).models
    assert [(m.name, m.version) for m in models] == [("other", "1"), ("tiny", "1"), ("tiny", "2")]
    assert [m.is_default for m in models] == [False, False, True]
    assert [m.description for m in models] == ["", "Drawn streets", "Drawn streets"]
    newest, told = models[-1], tiny["versions"][-1]
    assert json.loads(newest.contract_json) == told["contract"]
    contract = Contract.from_json(newest.contract_json)
    assert [c.name for c in newest.classes] == list(contract.class_names)
    assert tuple(newest.classes[2].color_rgb) == contract.classes[2].color
    assert (newest.state, newest.precision, newest.provider) == (
        told["state"],
        told["precision"],
        told["provider"],
    )


def test_probes(server: Server) -> None:
    assert server.rest.get("/livez").json() == {"status": "alive"}
    assert server.rest.get("/readyz").json() == {"status": "ready"}
    assert server.rest.get("/").json()["docs"] == "/docs"


def test_health(server: Server) -> None:
    health = health_pb2_grpc.HealthStub(server.channel)
    for service in ("", SERVICE, "inference.GRPCInferenceService"):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=30)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection(server: Server) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    names, file = list(stub.ServerReflectionInfo(iter(asked), timeout=30))
    services = {service.name for service in names.list_services_response.service}
    assert {SERVICE, "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services
    described = FileDescriptorProto.FromString(
        file.file_descriptor_response.file_descriptor_proto[0]
    )
    assert [m.name for m in described.service[0].method] == [
        "Segment",
        "SegmentStream",
        "ListModels",
    ]


def test_metrics(server: Server) -> None:
    image = png(street(16, 16))
    before = {
        "rest": server.metric(
            'fcn_requests_total{code="200",method="Segment",model="tiny",transport="rest"}'
        ),
        "grpc": server.metric(
            'fcn_requests_total{code="OK",method="Segment",model="tiny",transport="grpc"}'
        ),
    }
    server.rest.post("/segment", content=image, headers={"Content-Type": "image/png"})
    server.rest.post("/segment?model=nope", content=image, headers={"Content-Type": "image/png"})
    server.stub.Segment(pb.SegmentRequest(image=image), timeout=30)
    code = {"rest": "200", "grpc": "OK"}
    for transport, counted in before.items():  # an answer may leave before it is counted
        own = f'code="{code[transport]}",method="Segment",model="tiny",transport="{transport}"'
        server.settles(f"fcn_requests_total{{{own}}}", counted + 1)
    reply = server.rest.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {f.name: f for f in text_string_to_metric_families(reply.text)}
    accept = {"Accept": "application/openmetrics-text; version=nonsense, */*;q=0.1"}
    asked = server.rest.get("/metrics", headers=accept)
    assert asked.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert 'model="tiny",transport="rest"} ' in asked.text and ' # {request_id="' in asked.text
    for name, labels in METRICS.items():
        assert name in families, name
        for sample in families[name].samples:
            assert set(sample.labels) - {"le", "reason"} == labels, name
    series = {
        (s.labels["transport"], s.labels["model"], s.labels["code"]): s.value
        for s in families["fcn_requests"].samples
        if s.labels["method"] == "Segment"
    }
    assert series["rest", "", "404"] >= 1, "a made-up model name must not become a label"
    for name in ("fcn_request_duration_seconds", "fcn_stage_duration_seconds"):
        assert "0.175" in {s.labels.get("le") for s in families[name].samples}
    stages = {s.labels["stage"] for s in families["fcn_stage_duration_seconds"].samples}
    assert stages == {"decode", "queue", "infer", "render"}
    (target,) = families["fcn_latency_target_seconds"].samples
    assert target.value == 0.175
    loaded = {(s.labels["model"], s.labels["version"]) for s in families["fcn_model_info"].samples}
    assert loaded == {("tiny", "1"), ("tiny", "2"), ("other", "1")}


def test_the_callers_mistakes_are_not_latency(server: Server) -> None:
    count = 'fcn_request_duration_seconds_count{model="tiny",transport="rest"}'
    before = server.metric(count)
    told = 'fcn_requests_total{code="415",method="Segment",model="tiny",transport="rest"}'
    refused = server.metric(told)
    server.rest.post("/segment", content=b"no", headers={"Content-Type": "image/png"})
    server.settles(told, refused + 1)
    assert server.metric(count) == before


def test_one_log_line_per_request(server: Server) -> None:
    headers = {"Content-Type": "image/png", "X-Request-ID": "find-me-in-the-log"}
    server.rest.post("/segment", content=png(street()), headers=headers)
    server.rest.get("/livez", headers={"X-Request-ID": "a-probe-is-quiet"})
    until(lambda: "find-me-in-the-log" in server.log(), server.log)
    (line,) = (line for line in server.log().splitlines() if "find-me-in-the-log" in line)
    for part in ("INFO fcn.request rest Segment 200", "model=tiny", "infer_ms=", "duration_ms="):
        assert part in line
    assert "a-probe-is-quiet" not in server.log()


def test_openapi_lists_every_operation(server: Server) -> None:
    page = server.rest.get("/openapi.json").json()
    assert {path for path in page["paths"] if not path.startswith("/v2")} == {
        "/segment",
        "/v1/models",
        "/v1/models/{model}",
        "/livez",
        "/readyz",
        "/metrics",
    }
    post = page["paths"]["/segment"]["post"]
    assert {p["name"] for p in post["parameters"]} == {
        "model",
        "version",
        "output",
        "alpha",
        "outlines",
        "dtype",
        "classes",
        "priority",
        "deadline_ms",
        "scale",
    }
    assert "multipart/form-data" in post["requestBody"]["content"]
    assert "application/problem+json" in post["responses"]["429"]["content"]
    assert server.rest.get("/docs").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [("POST", "/segment", 200), ("POST", "/segment?output=overlay", 200), ("GET", "/metrics", 200)]
    + [("POST", "/segment?alpha=9", 400), ("GET", "/nope", 404), ("GET", "/", 200)],
)
def test_no_browser_runs_frames_or_keeps_an_answer(
    server: Server, method: str, path: str, code: int
) -> None:
    content = png(street()) if method == "POST" else None
    reply = server.rest.request(method, path, content=content)
    assert reply.status_code == code
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"
    page = server.rest.get("/", headers={"Accept": "text/html"})
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-cache"
