"""Three times the load of one server makes KEDA's query, in a real Prometheus, call for more."""

from __future__ import annotations

import itertools
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from tests.fault.conftest import lasting
from tests.prometheus import watching
from tests.serving import ROOT, running
from tests.waiting import until

IMAGE = lasting(60)
OBJECT = ROOT / "deploy" / "kubernetes" / "overlays" / "keda" / "scaledobject.yaml"
SETTINGS = ROOT / "deploy" / "kubernetes" / "base" / "kustomization.yaml"


def test_three_times_the_load_of_one_server_asks_for_more(
    slow_repository: Path, tmp_path: Path
) -> None:
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
    with (
        running(slow_repository, max_wait_ms=told["FCN_MAX_WAIT_MS"]) as server,
        watching(tmp_path, server.url.partition("://")[2]) as prometheus,
        ThreadPoolExecutor(40) as pool,
    ):
        took_s = []
        for _ in range(3):
            began = time.monotonic()
            assert server.rest.post("/segment", content=IMAGE).status_code == 200
            took_s.append(time.monotonic() - began)
        until(lambda: prometheus.value(query) == 0)
        over = threading.Event()

        def load() -> None:
            for n in itertools.count():
                if over.wait(min(took_s) / 3):
                    return
                pool.submit(server.rest.post, "/segment", content=IMAGE)
                assert n < 5000

        caller = threading.Thread(target=load)
        caller.start()
        try:
            # As the autoscaler has it: so many replicas as the value is times the threshold.
            until(lambda: math.ceil((prometheus.value(query) or 0) / threshold) >= 2)
        finally:
            over.set()
            caller.join()
        until(lambda: prometheus.value(query) == 0)
