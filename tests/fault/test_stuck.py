"""Networks that never end: what listens is ended, what does not is replaced, the server at last."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from onnx import TensorProto, helper, numpy_helper

from model.contract import METADATA_KEY
from tests.drawing import png, street
from tests.fault.conftest import lasting
from tests.serving import Server, running, write_slow_model
from tests.tiny_models import contract, write_file, write_model
from tests.waiting import until

WHITE = lasting(255)
BLACK = lasting(0)
ALL_WHITE = png(np.full((8, 8, 3), 255, np.uint8))
ENDLESS = 2**32 // 255  # turns: the better part of an hour
ADMIN = "the-admin-key-itself"


def write_deaf_model(repository: Path, name: str = "deaf", more: int = 8) -> Path:
    """A model one node of which takes hours on a white image, and nobody can end a node.

    It takes the greatest of every window of 1000 x 1000 values; an image with a black pixel has one
    of those, and each step of brightness of the darkest adds `more` rows and columns.
    """
    nodes = [
        helper.make_node("ReduceMin", ["image"], ["darkest"], keepdims=0),
        helper.make_node("Cast", ["darkest"], ["darkest64"], to=TensorProto.INT64),
        helper.make_node("Mul", ["darkest64", "more"], ["added"]),
        helper.make_node("Add", ["added", "kernel"], ["side"]),
        helper.make_node("Unsqueeze", ["side", "first"], ["sides"]),
        helper.make_node("Concat", ["one", "one", "sides", "sides"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["values"]),
        helper.make_node("MaxPool", ["values"], ["windows"], kernel_shape=[1000, 1000]),
        helper.make_node("ReduceMax", ["windows"], ["nothing"], keepdims=0),
        helper.make_node("Cast", ["nothing"], ["nothing8"], to=TensorProto.UINT8),
        helper.make_node("Gather", ["image", "zero"], ["plane"], axis=3),
        helper.make_node("Mul", ["plane", "nothing8"], ["label_map"]),
    ]
    numbers = {
        "zero": np.int64(0),
        "more": np.int64(more),
        "kernel": np.int64(1000),
        "first": np.array([0]),
        "one": np.array([1]),
    }
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("label_map", TensorProto.UINT8, ["N", "H", "W"])],
        [numpy_helper.from_array(np.array(value), key) for key, value in numbers.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: contract(name).to_json()})
    onnx.checker.check_model(model)
    return write_file(model, repository, name)


def ask(server: Server, image: bytes, model: str) -> httpx.Response:
    return server.rest.post(
        "/segment", content=image, headers={"Content-Type": "image/png"}, params={"model": model}
    )


def test_a_loop_without_end_is_ended_and_its_model_serves_on(tmp_path: Path) -> None:
    write_slow_model(tmp_path, "slow", turns=ENDLESS)
    write_model(tmp_path, "good")
    with running(tmp_path, stuck_after_s=1, admin_key_file=admin_key(tmp_path)) as server:
        for count in (1, 2, 3):  # never a reason for the process to leave
            reply = ask(server, WHITE, "slow")
            assert reply.status_code == 503, reply.text
            assert reply.json()["type"] == "urn:fcn:problem:model-not-ready"
            assert "took far longer over this image" in reply.json()["detail"]
            server.settles('fcn_stuck_runs_total{model="slow",outcome="ended"}', count)
            until(lambda: ask(server, BLACK, "slow").status_code == 200)
            assert ask(server, png(street()), "good").status_code == 200
        assert server.rest.get("/readyz").status_code == 200
        until(lambda: "busy for" in server.log(), server.log)
        assert "ONNXRuntimeError" not in server.log(), "its own line, past the log's format"
        assert server.stop() == 0


def test_a_model_that_hangs_can_be_unloaded(tmp_path: Path) -> None:
    write_slow_model(tmp_path, "slow", turns=ENDLESS)
    with running(
        tmp_path, stuck_after_s=3600, deadline_ms=1000, admin_key_file=admin_key(tmp_path)
    ) as server:
        assert ask(server, WHITE, "slow").status_code == 504
        unloaded = server.rest.post(
            "/v2/repository/models/slow/unload", headers={"Authorization": f"Bearer {ADMIN}"}
        )
        assert unloaded.status_code == 200, unloaded.text
        until(lambda: "closed slow version 1" in server.log(), server.log)
        assert server.stop() == 0


def test_a_signal_ends_a_loop_whose_caller_has_left(tmp_path: Path) -> None:
    write_slow_model(tmp_path, "slow", turns=ENDLESS)
    with running(tmp_path, stuck_after_s=3600, deadline_ms=1000) as server:
        assert ask(server, WHITE, "slow").status_code == 504
        assert server.stop() == 0


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])  # the latter ends no run at all
def test_what_cannot_be_ended_is_replaced_and_the_second_time_the_server_leaves(
    tmp_path: Path, engine: str
) -> None:
    write_deaf_model(tmp_path)
    settings = {"stuck_after_s": 3, "deadline_ms": 60_000, "drain_s": 5, "engine": engine}
    with running(tmp_path, **settings) as server:
        assert f'engine="{engine}"' in server.rest.get("/metrics").text
        health = health_pb2_grpc.HealthStub(server.channel)
        told = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(told).status == health_pb2.HealthCheckResponse.SERVING
        assert ask(server, BLACK, "deaf").status_code == 200
        assert ask(server, ALL_WHITE, "deaf").status_code == 503
        # Nothing else serves, so the server is not ready until the model is loaded anew.
        assert server.rest.get("/readyz").status_code == 503
        assert not server.rest.get("/v2/health/ready").is_success
        assert next(told).status == health_pb2.HealthCheckResponse.NOT_SERVING
        until(lambda: ask(server, BLACK, "deaf").status_code == 200, server.log)
        assert next(told).status == health_pb2.HealthCheckResponse.SERVING
        assert server.metric('fcn_stuck_runs_total{model="deaf",outcome="lost"}') == 1
        assert ask(server, ALL_WHITE, "deaf").status_code == 503
        assert server.process.wait(60) == 1
        assert "leaving, to be started anew" in server.log()


def test_a_network_that_wants_more_memory_than_there_is_costs_its_request(tmp_path: Path) -> None:
    write_deaf_model(tmp_path, more=8192)  # 17 TB for a white image
    with running(tmp_path) as server:
        for _ in range(3):
            reply = ask(server, ALL_WHITE, "deaf")
            assert reply.status_code == 500
            assert reply.json()["type"] == "urn:fcn:problem:inference-failed"
            assert ask(server, BLACK, "deaf").status_code == 200


def test_a_model_that_hangs_in_its_warm_up_does_not_hold_up_a_signal(tmp_path: Path) -> None:
    write_model(tmp_path, "good")
    with running(tmp_path, model_poll_s=0.2) as server:
        write_slow_model(tmp_path, "slow", turns_at_least=ENDLESS * 255)
        until(lambda: "loading" in server.rest.get("/v1/models").text, server.log)
        assert ask(server, png(street()), "good").status_code == 200
        assert server.stop() == 0


def admin_key(folder: Path) -> Path:
    path = folder.parent / "admin.key"
    path.write_text(ADMIN)
    return path
