"""Readers of the log that stop, leave or have no room: requests go on, and so does the end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.serving import ROOT, STOP_TIMEOUT_S, command, environment, running
from tests.tiny_models import write_model
from tests.waiting import until

DROPPED = "fcn_log_lines_dropped_total"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "models")
    return tmp_path / "models"


@contextmanager
def serving(
    repository: Path, *, stdout: int, stderr: int
) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A server whose output goes where it is told; a client of it that waits until it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        command(model_repository=repository, http_port=port, grpc_port=0, pool_workers=2),
        cwd=ROOT,
        env=environment(),
        stdout=stdout,
        stderr=stderr,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def ready() -> bool:
                assert process.poll() is None
                try:
                    return client.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            until(ready)
            yield process, client
    finally:
        process.kill()
        process.wait()


def filled_pipe() -> tuple[int, int]:
    """A pipe with no room left, and nobody who reads it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (65536, 1):
        try:
            while True:
                os.write(writer, bytes(size))
        except BlockingIOError:
            pass
    os.set_blocking(writer, True)
    return reader, writer


def left_pipe() -> tuple[int, int]:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.open(os.devnull, os.O_RDONLY), writer


def full_disk() -> tuple[int, int]:
    return os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)


def write_until(client: httpx.Client, condition: Callable[[], bool]) -> None:
    """Makes log lines, a long one for each request."""
    until(lambda: client.get("/" + "x" * 500).status_code == 404 and condition())


def dropped(client: httpx.Client) -> float:
    found = re.search(rf"^{DROPPED} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


@pytest.mark.parametrize("open_pipe", [filled_pipe, left_pipe, full_disk])
def test_a_reader_who_stops_stops_neither_requests_nor_the_end(
    repository: Path, open_pipe: Callable[[], tuple[int, int]]
) -> None:
    reader, writer = open_pipe()
    try:
        with serving(repository, stdout=writer, stderr=writer) as (process, client):
            for _ in range(50):
                assert client.get("/v1/models").status_code == 200
            if open_pipe is not filled_pipe:  # whose queue has room for more lines than that
                write_until(client, lambda: dropped(client) > 0)
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_TIMEOUT_S) == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_lines_are_dropped_and_one_says_how_many(repository: Path) -> None:
    program = """
import logging, os, re, threading
from service.logs import LogWriter, TextFormatter
from service.telemetry import Telemetry
reader, writer = os.pipe()
handler = LogWriter(writer, max_lines=20)
handler.setFormatter(TextFormatter())
log = logging.getLogger()
log.handlers[:] = [handler]
for n in range(5000):
    log.warning("line %d %s", n, "x" * 200)
dropped = handler.dropped
assert dropped > 1000, dropped
assert f"fcn_log_lines_dropped_total {float(dropped)}".encode() in Telemetry(0.1).scrape()
read = []
def read_on():
    while part := os.read(reader, 65536):
        read.append(part.decode())
thread = threading.Thread(target=read_on)
thread.start()
while handler._lines.unfinished_tasks:
    handler.flush()
log.warning("line at last")
while handler._lines.unfinished_tasks:
    handler.flush()
os.close(writer)
thread.join()
got = "".join(read)
told = re.findall(r"WARNING fcn.log (\\d+) log lines were dropped", got)
assert sum(map(int, told)) == dropped == handler.dropped, (told, dropped)
assert got.count("WARNING root line") == 5001 - dropped
"""
    done = subprocess.run(
        command()[:1] + ["-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_a_closed_stderr_and_stdout_are_no_reason_to_stop(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    started = command(model_repository=repository, http_port=port, grpc_port=0)
    process = subprocess.Popen(
        ["bash", "-c", 'exec "$@" >&- 2>&-', "-", *started], cwd=ROOT, env=environment()
    )
    try:
        url = f"http://127.0.0.1:{port}/readyz"

        def ready() -> bool:
            assert process.poll() is None
            try:
                return httpx.get(url).status_code == 200
            except httpx.TransportError:
                return False

        until(ready)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()


def test_the_last_lines_are_written_before_the_end(repository: Path) -> None:
    with running(repository) as server:
        assert server.stop() == 0
        assert server.log().splitlines()[-1].endswith("INFO fcn.app stopped")
