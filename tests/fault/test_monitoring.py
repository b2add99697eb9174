"""A real Prometheus and Alertmanager watch a real server: the rules give what its callers counted,
a slowed model pages, and recovery clears it. Every panel of the dashboard has data."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml

from fcn_client.stubs import segmentation_pb2 as pb
from service.api.stubs import inference_pb2 as oip
from service.api.stubs import inference_pb2_grpc as oip_grpc
from tests.drawing import png
from tests.fault.conftest import lasting
from tests.prometheus import SCALE, Prometheus, free_port, process, watching
from tests.serving import Server, running
from tests.unit.repository.pages import ROOT
from tests.waiting import until
from tools.make_dashboard import RATE, queries
from tools.make_rules import COUNTED, WINDOWS, Durations

TARGET_S, TARGET_PIXELS = 0.1, 1000
QUICK, SLOW = lasting(0), lasting(80)
LARGE = png(np.full((40, 40, 3), 80, np.uint8))
AT_ONCE = 26
"""Twice as many as the server holds: about half are answered, slowly, and half are refused."""
PAGES = {"FcnSlow/page", "FcnFailing/page"}


class Load:
    """Asks over REST, gRPC and the Open Inference Protocol, and counts what comes back."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._oip = oip_grpc.GRPCInferenceServiceStub(server.channel)
        self.answered: Counter[tuple[str, str]] = Counter()
        self.refused = self.slow = self.unsure = 0
        self._lock = threading.Lock()

    def quick(self) -> None:
        """Sends one image each way."""
        shape, pixels = [1, 8, 8, 3], bytes(8 * 8 * 3)
        tensor = {"name": "image", "datatype": "UINT8", "shape": shape, "data": [0] * len(pixels)}
        message = oip.ModelInferRequest(
            model_name="slow",
            inputs=[
                oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=shape)
            ],
            raw_input_contents=[pixels],
        )
        rest, stub = self._server.rest, self._server.stub
        for transport, method, ask in (
            ("rest", "Segment", lambda: self._post(rest, QUICK)),
            ("grpc", "Segment", lambda: stub.Segment(pb.SegmentRequest(image=QUICK), timeout=30)),
            ("rest", "ModelInfer", lambda: _infer(rest, tensor)),
            ("grpc", "ModelInfer", lambda: self._oip.ModelInfer(message, timeout=30)),
        ):
            began_s = time.monotonic()
            ask()
            self.unsure += time.monotonic() - began_s > TARGET_S
            self.answered[transport, method] += 1

    def crowd(self) -> None:
        """Sends slow images, more at once than there is room for."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._slow, range(AT_ONCE)))

    def no_fault_of_the_server(self) -> None:
        """Sends what no objective judges, or the availability alone."""
        client = self._server.rest
        assert client.post("/segment", content=b"no image").status_code == 415
        own = client.post("/segment?deadline_ms=20", content=SLOW)
        assert own.status_code in (429, 504)
        self.refused += own.status_code == 429
        self._post(client, LARGE)
        self.answered["rest", "Segment"] += 1
        self.large = 1

    def _slow(self, number: int) -> None:
        headers = {"X-Request-ID": f"slow-{number}"}
        status = self._server.rest.post("/segment", content=SLOW, headers=headers).status_code
        with self._lock:
            assert status in (200, 429)
            self.refused += status == 429
            self.slow += status == 200
            self.answered["rest", "Segment"] += status == 200

    def _post(self, client: httpx.Client, image: bytes) -> None:
        assert client.post("/segment", content=image).status_code == 200


def _infer(client: httpx.Client, tensor: Mapping[str, object]) -> None:
    reply = client.post("/v2/models/slow/infer", json={"inputs": [tensor]})
    assert reply.status_code == 200, reply.text


@contextmanager
def webhook() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Gives the address of one, and the path and the alerts of all that it was told."""
    told: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for alert in body["alerts"]:
                assert alert["annotations"]["runbook_url"].startswith("docs/runbook.md#")
                told.append((self.path, f"{alert['labels']['alertname']} {alert['status']}"))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keeps quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def alertmanager(folder: Path, hook: str) -> Iterator[str]:
    """Runs one by the example's routes, which waits for nothing."""
    file = ROOT / "docker" / "alertmanager" / "alertmanager.yml"
    config = yaml.safe_load(file.read_text().replace("http://host.docker.internal:9099", hook))
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"group_wait": "100ms", "group_interval": "200ms"}
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    with process(
        "prometheus-alertmanager",
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alerts'}",
        "--web.listen-address={}",
        "--cluster.listen-address=",
    ) as url:
        yield url.removeprefix("http://")


def test_the_rules_say_what_the_callers_saw(slow_repository: Path, tmp_path: Path) -> None:
    port, began_s = free_port(), time.monotonic()
    with (
        webhook() as (hook, told),
        alertmanager(tmp_path, hook) as alerts,
        watching(tmp_path, f"127.0.0.1:{port}", alertmanagers=[alerts]) as prometheus,
        running(
            slow_repository,
            http_port=port,
            latency_target_s=TARGET_S,
            latency_target_pixels=TARGET_PIXELS,
            max_inflight=AT_ONCE // 2,
            max_wait_ms=60_000,
            stuck_after_s=600,
        ) as server,
    ):
        load = Load(server)
        until(lambda: prometheus.value("fcn:slo_budget_left:ratio{slo='latency'}") == 1)
        for _ in range(10):
            load.quick()
        load.no_fault_of_the_server()
        # That it was down before its first scrape is over with the next evaluation.
        until(lambda: load.unsure or not prometheus.firing(), lambda: f"{prometheus.firing()}")

        def pages() -> bool:
            load.crowd()
            return prometheus.firing() >= PAGES

        until(pages, lambda: f"{prometheus.firing()}")
        until(lambda: {("/page", "FcnSlow firing"), ("/page", "FcnFailing firing")} <= {*told})
        data = _without_data(prometheus)
        _named(prometheus)

        def recovered() -> bool:
            load.quick()
            return "FcnSlow/page" not in prometheus.firing()

        until(recovered)
        until(lambda: ("/page", "FcnSlow resolved") in told)
        assert data == []
        _compare(prometheus, load, began_s)


def _without_data(prometheus: Prometheus) -> list[tuple[str, str]]:
    """Lists the panels' queries that have none."""
    return [
        (title, query)
        for title, query in queries()
        if not prometheus.samples(query.replace(RATE, "[30s]"))
    ]


def _named(prometheus: Prometheus) -> None:
    """The exemplars of the slow buckets name requests that were slow."""
    slow = f'fcn_request_duration_seconds_bucket{{le!="{TARGET_S}"}}'
    found = prometheus.get(
        "query_exemplars", query=slow, start=time.time() - 300, end=time.time() + 5
    )
    names = {e["labels"]["request_id"] for series in found for e in series["exemplars"]}
    assert any(name.startswith("slow-") for name in names), names


def _compare(prometheus: Prometheus, load: Load, began_s: float) -> None:
    for (transport, method), n in load.answered.items():
        code = {"rest": "200", "grpc": "OK"}[transport]
        own = f'transport="{transport}",method="{method}",code="{code}",model="slow"'
        until(lambda own=own, n=n: prometheus.value(f"fcn_requests_total{{{own}}}") == n)  # type: ignore[misc]
    answered = load.answered.total()
    images = {"availability": answered + load.refused, "latency": answered - load.large}
    bad = {slo: prometheus.value(_bad(slo)) or 0.0 for slo in images}
    assert bad["availability"] == load.refused
    assert load.slow <= bad["latency"] <= load.slow + load.unsure
    for slo, n in images.items():
        idle, seconds = f'fcn:slo_images:increase5m{{slo="{slo}"}}', Durations(SCALE).seconds
        for window in WINDOWS:
            if seconds(window) < time.monotonic() - began_s + 1:
                continue  # it has forgotten what came first
            if window in COUNTED:
                counted = f'fcn:slo_images:increase{window}{{slo="{slo}"}}'
                until(lambda counted=counted, n=n: prometheus.value(counted) == n)  # type: ignore[misc]
            else:  # the mean of what five minutes had, once all of it is in there
                until(lambda idle=idle: prometheus.value(idle) == 0)  # type: ignore[misc]
            ratio = f'fcn:slo_error:ratio{window}{{slo="{slo}"}}'
            near = pytest.approx(bad[slo] / n, rel=1e-6 if window in COUNTED else 0.3)
            until(  # the rule comes after that which counts
                lambda ratio=ratio, near=near: prometheus.value(ratio) == near,  # type: ignore[misc]
                lambda ratio=ratio, near=near: f"{ratio} {prometheus.value(ratio)} {near}",  # type: ignore[misc]
            )
        left = prometheus.value(f'fcn:slo_budget_left:ratio{{slo="{slo}"}}')
        assert left is not None and left < 0, slo


def _bad(slo: str) -> str:
    return f'sum(fcn_slo_images_total{{slo="{slo}",result="bad"}})'
