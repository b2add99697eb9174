"""Two processes on one machine: each has its own ports and metrics, and callers see one server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fcn_client import FcnClient
from tests.drawing import png, street
from tests.serving import Server, fail_to_start, running
from tests.tiny_models import expected_label_map, write_model

ANSWERED = 'fcn_requests_total{code="%s",method="Segment",model="tiny",transport="%s"}'


@pytest.mark.parametrize(("transport", "code"), [("rest", "200"), ("grpc", "OK")])
def test_each_counts_its_own_and_one_goes_on_alone(
    tmp_path: Path, transport: str, code: str
) -> None:
    write_model(tmp_path)
    image, wanted = png(street()), expected_label_map(street())
    series = ANSWERED % (code, transport)

    def address(server: Server) -> str:
        return server.url if transport == "rest" else f"grpc://{server.target}"

    with (
        running(tmp_path) as first,
        running(tmp_path) as second,
        FcnClient([address(first), address(second)]) as client,
        ThreadPoolExecutor(4) as pool,
    ):

        def ask(_: int) -> None:
            assert np.array_equal(client.segment(image).value, wanted)

        list(pool.map(ask, range(40)))
        counted = [server.metric(series) for server in (first, second)]
        assert sum(counted) == 40 and min(counted) > 0
        assert first.stop() == 0
        list(pool.map(ask, range(10)))
        assert second.metric(series) == counted[1] + 10


def test_a_port_is_not_shared(tmp_path: Path) -> None:
    write_model(tmp_path)
    with running(tmp_path) as server:
        for name, port in (
            ("http_port", server.url.rpartition(":")[2]),
            ("grpc_port", server.target.rpartition(":")[2]),
        ):
            ports = {"http_port": "0", "grpc_port": "0", name: port}
            code, _, said = fail_to_start(model_repository=tmp_path, **ports)
            assert code == 1 and f"set FCN_{name.upper()} to another" in said
