"""KEDA's query, in a real Prometheus, calls for more under the load of three servers, and for no
more once a second one shares what is too much for one."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import yaml

from tests.fault.conftest import lasting
from tests.prometheus import free_port, watching
from tests.serving import ROOT, Server, running
from tests.waiting import until

IMAGE = lasting(60)
OBJECT = ROOT / "deploy" / "kubernetes" / "overlays" / "keda" / "scaledobject.yaml"
SETTINGS = ROOT / "deploy" / "kubernetes" / "base" / "kustomization.yaml"


class Callers:
    """Send images at a steady rate to servers in turn, and wait for nobody."""

    def __init__(self, pool: ThreadPoolExecutor, every_s: float, server: Server) -> None:
        self.every_s = every_s
        self.servers = [server]
        self.answered: list[float] = []
        """When images were."""
        self._pool = pool
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _send(self) -> None:
        for number in range(20_000):
            if self._over.wait(self.every_s):
                return
            server = self.servers[number % len(self.servers)]
            self._pool.submit(self._ask, server)

    def _ask(self, server: Server) -> None:
        if server.rest.post("/segment", content=IMAGE).status_code == 200:
            self.answered.append(time.monotonic())


def test_a_second_server_takes_away_what_called_for_it(
    slow_repository: Path, tmp_path: Path
) -> None:
    """Three times the load of one server calls for more, and so does a fifth above it; two servers
    carry that."""
    (metadata,) = (
        trigger["metadata"]
        for trigger in yaml.safe_load(OBJECT.read_text())["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    )
    query, threshold = metadata["query"], float(metadata["threshold"])
    assert query.count("[1m]") == 1
    query = query.replace("[1m]", "[3s]")
    (generated,) = yaml.safe_load(SETTINGS.read_text())["configMapGenerator"]
    told = dict(literal.split("=") for literal in generated["literals"])
    small = {"instances": 1, "intra_op_threads": 1, "max_wait_ms": told["FCN_MAX_WAIT_MS"]}
    port = free_port()
    with (
        running(slow_repository, **small) as server,
        watching(tmp_path, server.url.partition("://")[2], f"127.0.0.1:{port}") as prometheus,
        ThreadPoolExecutor(80) as pool,
    ):

        def replicas() -> int:
            """So many does the autoscaler have as the value is times the threshold."""
            return math.ceil((prometheus.value(query) or 0) / threshold)

        took_s = []
        for _ in range(5):
            began = time.monotonic()
            assert server.rest.post("/segment", content=IMAGE).status_code == 200
            took_s.append(time.monotonic() - began)
        until(lambda: prometheus.value(query) == 0)
        with Callers(pool, min(took_s) / 3, server) as callers:
            until(lambda: replicas() >= 2)
            # What the server does now, which is less where others take its processor.
            begun = len(callers.answered)
            until(lambda: len(callers.answered) >= begun + 30)
            first, last = callers.answered[begun], callers.answered[begun + 29]
            callers.every_s = (last - first) / 29 / 1.2
            with running(slow_repository, http_port=port, **small) as second:
                assert replicas() >= 2
                callers.servers.append(second)
                until(lambda: replicas() <= 1)
        until(lambda: prometheus.value(query) == 0)
