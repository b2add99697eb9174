"""Two servers behind nginx, with the file that deploy/nginx/ has: one is killed under load."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from fcn_client import FcnClient
from tests.conftest import need
from tests.drawing import png, street
from tests.prometheus import free_port
from tests.serving import ROOT, Server, running
from tests.tiny_models import write_model
from tests.waiting import until

CALLERS, EACH = 4, 40
IMAGE = png(street(24, 32))
SERVED = 'fcn_requests_total{code="200",method="Segment",model="tiny",transport="rest"}'
ANSWERED = 'fcn_requests_total{code="OK",method="Segment",model="tiny",transport="grpc"}'


@contextmanager
def in_front(folder: Path, servers: list[Server]) -> Iterator[tuple[str, str]]:
    """Runs nginx; yields its addresses for REST and for gRPC."""
    need(shutil.which("nginx") is not None, "nginx (apt-get install nginx-light)")
    rest, rpc = free_port(), free_port()
    config = (ROOT / "deploy/nginx/nginx.conf").read_text()
    ports = {8080: rest, 8081: rpc}
    for server, http_port in zip(servers, (8000, 8010), strict=True):
        ports[http_port] = server.http_address[1]
        ports[http_port + 1] = int(server.target.rsplit(":", 1)[1])
    config = re.sub(r"\b80[018][01]\b", lambda found: str(ports[int(found[0])]), config)
    for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):  # not /var/lib's
        config = config.replace("http {", f"http {{ {kind}_temp_path {kind}; ", 1)
    (folder / "nginx.conf").write_text(config)
    with (folder / "log").open("w+") as log:
        proxy = subprocess.Popen(
            ["nginx", "-p", folder, "-e", "stderr", "-c", "nginx.conf", "-g", "daemon off;"],
            stderr=log,
        )
        try:
            until(lambda: taken(rest), lambda: (folder / "log").read_text())
            yield f"http://127.0.0.1:{rest}", f"127.0.0.1:{rpc}"
        finally:
            proxy.terminate()
            proxy.wait(30)


def taken(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez").is_success
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("behind")
    write_model(folder)
    return folder


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_killed_server_behind_nginx_fails_no_request(
    transport: str, repository: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(running(repository)) for _ in range(2)]
        rest, rpc = stack.enter_context(in_front(tmp_path, servers))
        if transport == "rest":
            client = stack.enter_context(httpx.Client(base_url=rest, timeout=60))
        else:  # of the calls that a dying server had begun, nginx keeps no copy
            retrying = stack.enter_context(FcnClient(f"grpc://{rpc}"))

        def ask() -> bytes:
            if transport == "grpc":
                return retrying.segment(IMAGE).body
            reply = client.post("/segment", content=IMAGE, headers={"Content-Type": "image/png"})
            assert reply.status_code == 200, reply.text
            return reply.content

        series = SERVED if transport == "rest" else ANSWERED
        wanted, answers = ask(), list[bytes]()

        def call() -> None:
            for _ in range(EACH):
                answers.append(ask())

        with ThreadPoolExecutor(CALLERS) as pool:
            calls = [pool.submit(call) for _ in range(CALLERS)]
            until(lambda: len(answers) > CALLERS * EACH // 4 or any(c.done() for c in calls))
            assert all(server.metric(series) > 0 for server in servers), "both had work"
            servers[0].process.kill()
            for done in calls:
                done.result(60)
        assert len(answers) == CALLERS * EACH
        assert set(answers) == {wanted}
