"""A real Prometheus for tests, which watches a server of ours by our own rules, only faster."""

from __future__ import annotations

import contextlib
import math
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from service.listening import listen
from tests.conftest import need
from tests.waiting import until
from tools.make_rules import rules, text

EVERY = "500ms"
"""Between scrapes, and between evaluations."""
SCALE = 0.01
"""Five minutes of the rules are three seconds."""
STOP_TIMEOUT_S = 20.0


def free_port() -> int:
    (socket, *_) = sockets = listen("127.0.0.1", 0, "a port")
    port = int(socket.getsockname()[1])
    for opened in sockets:
        opened.close()
    return port


@contextmanager
def process(*command: object) -> Iterator[str]:
    """Runs a program of Prometheus's that listens where `{}` stands; gives its address."""
    name = str(command[0])
    need(shutil.which(name) is not None, f"{name} (apt-get install prometheus-alertmanager)")
    address = f"127.0.0.1:{free_port()}"
    running = subprocess.Popen(
        [str(word).replace("{}", address) for word in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ready() -> bool:
        assert running.poll() is None, f"{name} has ended"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://{address}/-/ready").is_success
        return False

    try:
        until(ready, lambda: f"{name} ready")
        yield f"http://{address}"
    finally:
        running.terminate()
        try:
            running.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


class Prometheus:
    """Asks one for what it has stored."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30.0)

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **asked: object) -> Any:
        reply = self._client.get(f"/api/v1/{path}", params={k: str(v) for k, v in asked.items()})
        assert reply.is_success, reply.text
        return reply.json()["data"]

    def samples(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Gives the labels and the value of each series that has a number now."""
        found = self.get("query", query=query)["result"]
        values = [(one["metric"], float(one["value"][1])) for one in found]
        return [(labels, value) for labels, value in values if not math.isnan(value)]

    def value(self, query: str) -> float | None:
        """Gives the value of the only series there is; None without one."""
        found = self.samples(query)
        assert len(found) < 2, found
        return found[0][1] if found else None

    def firing(self) -> set[str]:
        """Lists name and severity of the alerts that fire."""
        found = self.samples('ALERTS{alertstate="firing"}')
        return {f"{labels['alertname']}/{labels['severity']}" for labels, _ in found}


@contextmanager
def watching(
    folder: Path, *servers: str, alertmanagers: Sequence[str] = ()
) -> Iterator[Prometheus]:
    """Has one watch the servers at those addresses until the end of the block."""
    (folder / "rules.yml").write_text(text(rules(SCALE)))
    config = {
        "global": {"scrape_interval": EVERY, "evaluation_interval": EVERY},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "fcn", "static_configs": [{"targets": [*servers]}]}],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [*alertmanagers]}]}]},
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with process(
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address={}",
        "--enable-feature=exemplar-storage",
        "--log.level=error",
    ) as url:
        prometheus = Prometheus(url)
        try:
            yield prometheus
        finally:
            prometheus.close()
