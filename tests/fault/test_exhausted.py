"""Takes descriptors, threads and room on the disk away from a server, and gives them back.

The limits are those of the running process, taken away and given back by `prlimit`.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.drawing import png, street
from tests.serving import Server, running
from tests.tiny_models import write_model
from tests.waiting import until

if sys.platform != "linux":
    pytest.skip("prlimit is Linux's", allow_module_level=True)

OLD, NEW = "the-key-before-it-was-revoked", "the-key-that-came-after-it"
IMAGE = png(street())


@contextmanager
def limited(server: Server, what: int, soft: int) -> Iterator[None]:
    before = resource.prlimit(server.process.pid, what)
    resource.prlimit(server.process.pid, what, (soft, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, what, before)


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def sleeping(server: Server) -> bool:
    """Tells whether the event loop's thread wants no core, also none that it has to wait for."""
    return Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(") ", 1)[1][0] == "S"


def labelled(server: Server, key: str = OLD) -> int:
    headers = {"Content-Type": "image/png", "X-API-Key": key}
    return server.rest.post("/segment", content=IMAGE, headers=headers).status_code


def states(server: Server) -> dict[str, str]:
    found = server.rest.get("/v1/models/tiny", headers={"X-API-Key": OLD})
    if found.status_code == 401:
        found = server.rest.get("/v1/models/tiny", headers={"X-API-Key": NEW})
    return {version["version"]: version["state"] for version in found.json()["versions"]}


def test_without_a_free_descriptor_nothing_is_lost(tmp_path: Path) -> None:
    keys, models = tmp_path / "keys", tmp_path / "models"
    keys.write_text(f"old {OLD}\n")
    write_model(models)
    with running(models, api_keys_file=keys, model_poll_s=0.2) as server:
        assert labelled(server) == 200
        with limited(server, resource.RLIMIT_NOFILE, descriptors(server)):
            waiting = [socket.create_connection(server.http_address) for _ in range(20)]
            keys.with_name("new").write_text(f"new {NEW}\n")
            keys.with_name("new").replace(keys)
            write_model(models, version=2)
            until(lambda: all(sleeping(server) for _ in range(100)), lambda: "an idle event loop")
            assert labelled(server) == 200, "over a connection that it has"
        for connection in waiting:
            connection.close()
        until(lambda: httpx.get(server.url + "/livez", timeout=60).status_code == 200)
        until(lambda: labelled(server, OLD) == 401, server.log)
        until(lambda: labelled(server, NEW) == 200, server.log)
        until(lambda: states(server).get("2") == "ready", server.log)
        assert server.stop() == 0


def test_a_model_that_found_no_threads_is_tried_again(tmp_path: Path) -> None:
    write_model(tmp_path)
    with running(tmp_path, model_poll_s=0.2) as server:
        assert labelled(server) == 200
        pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[0])
        used = pages * resource.getpagesize()
        # Too little for the stack of another thread, and enough for what requests take.
        with limited(server, resource.RLIMIT_AS, used + 4 * 1024 * 1024):
            write_model(tmp_path, version=2)
            until(lambda: states(server).get("2") == "failed", server.log)
            assert labelled(server) == 200
        until(lambda: states(server).get("2") == "ready", server.log)
        assert server.stop() == 0


def test_a_log_that_may_not_grow_stops_no_request(tmp_path: Path) -> None:
    write_model(tmp_path)
    with running(tmp_path) as server:
        with limited(server, resource.RLIMIT_FSIZE, 0):
            assert [labelled(server) for _ in range(5)] == [200] * 5
            server.wait_for("fcn_log_lines_dropped_total", 5)
        assert labelled(server) == 200
        until(lambda: "log lines were dropped" in server.log(), server.log)
        assert server.stop() == 0


def test_a_killed_server_starts_again_on_its_ports_at_once(tmp_path: Path) -> None:
    write_model(tmp_path)
    ports: dict[str, object] = {"http_port": 0, "grpc_port": 0}
    for _ in range(3):
        with running(tmp_path, **ports) as server:
            ports = {
                "http_port": server.http_address[1],
                "grpc_port": int(server.target.rsplit(":", 1)[1]),
            }
            assert labelled(server) == 200
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(60)
