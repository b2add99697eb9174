"""A real server for tests: `fcn serve` as a process of its own, on ports the system picks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import grpc
import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc
from model.contract import METADATA_KEY
from tests.tiny_models import contract, write_file
from tests.waiting import until

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
_READY = re.compile(
    r"ready: REST (https?://\S+), gRPC (\S+?)(?: with m?TLS)?(?:, admin (\S+))?, serving"
)


def command(**settings: object) -> list[str]:
    """`fcn serve` with flags; `http_port=0` becomes `--http-port=0`."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "cli.main", "serve", *flags]


def environment(**extra: str) -> dict[str, str]:
    """This process's, without FCN_ settings of the developer's, on one thread."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FCN_")}
    return {**kept, "OMP_NUM_THREADS": "1", **extra}


def fail_to_start(**settings: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a start that should fail."""
    done = subprocess.run(
        command(**settings),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
    )
    return done.returncode, done.stdout, done.stderr


class Server:
    """A running server; `url` is that of REST, `target` that of gRPC, `admin_url` that of
    FCN_ADMIN_PORT."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self.process = process
        self._log = log
        line = process.stdout.readline() if process.stdout else ""
        found = _READY.search(line)
        if found is None:
            raise RuntimeError(f"the server did not start: {line}{self.log()}")
        self.url, self.target, self.admin_url = found.groups()
        self.rest = httpx.Client(base_url=self.url, timeout=60.0)
        self.channel = grpc.insecure_channel(
            self.target, options=[("grpc.max_receive_message_length", -1)]
        )
        self.stub = pb_grpc.SegmentationStub(self.channel)

    @property
    def http_address(self) -> tuple[str, int]:
        host, port = self.url.partition("://")[2].rsplit(":", 1)
        return host, int(port)

    def log(self) -> str:
        """All of stderr until now."""
        self._log.flush()
        self._log.seek(0)
        return self._log.read()

    def metric(self, series: str) -> float:
        """The value of one series as /metrics writes it; 0 while it does not exist."""
        for line in self.rest.get("/metrics").text.splitlines():
            name, _, value = line.rpartition(" ")
            if name == series:
                return float(value)
        return 0.0

    def wait_for(self, series: str, at_least: float) -> None:
        until(
            lambda: self.metric(series) >= at_least,
            lambda: f"{series} at least {at_least} in {self.log()}",
        )

    def settles(self, series: str, value: float) -> None:
        """Wait until the series has this value: an answer may leave before it is counted."""
        until(lambda: self.metric(series) == value, lambda: f"{series} {value} in {self.log()}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal and returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        self.rest.close()
        self.channel.close()
        if self.process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


@contextmanager
def running(repository: Path, **settings: object) -> Iterator[Server]:
    """A server over `repository`, gone at the end of the block."""
    chosen = {
        "model_repository": repository,
        "http_port": 0,
        "grpc_port": 0,
        "intra_op_threads": 1,
        "pool_workers": 2,
        **settings,
    }
    # For appending: the server shares the place that reading it moves.
    with tempfile.TemporaryFile("a+") as log:
        process = subprocess.Popen(
            command(**chosen),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            server = Server(process, log)
        except BaseException:  # a test's timeout among them: no server may outlive its test
            process.kill()
            process.communicate()
            raise
        try:
            yield server
        finally:
            server.close()


def write_slow_model(
    repository: Path, name: str = "slow", turns: int = 4000, turns_at_least: int = 0
) -> Path:
    """A model whose label is 0 everywhere and whose time the caller chooses.

    The red value of the first pixel times `turns`, plus `turns_at_least`, is how often it goes
    round an empty loop (about 0.7 us each). Without the latter the black image of the warm-up
    costs nothing.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("Add", ["sum", "one"], ["next_sum"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("still_going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next_sum", TensorProto.INT64, []),
        ],
    )
    nodes = [
        helper.make_node("Gather", ["image", "zero"], ["first_image"], axis=0),
        helper.make_node("Gather", ["first_image", "zero"], ["first_row"], axis=0),
        helper.make_node("Gather", ["first_row", "zero"], ["first_pixel"], axis=0),
        helper.make_node("Gather", ["first_pixel", "zero"], ["red"], axis=0),
        helper.make_node("Cast", ["red"], ["red64"], to=TensorProto.INT64),
        helper.make_node("Mul", ["red64", "turns_each"], ["turns_of_red"]),
        helper.make_node("Add", ["turns_of_red", "turns_at_least"], ["turns"]),
        helper.make_node("Loop", ["turns", "true", "zero"], ["sum_of_turns"], body=body),
        # The sum is used, times zero, so that no optimiser removes the loop.
        helper.make_node("Mul", ["sum_of_turns", "zero"], ["nothing"]),
        helper.make_node("Cast", ["nothing"], ["nothing8"], to=TensorProto.UINT8),
        helper.make_node("Gather", ["image", "zero"], ["plane"], axis=3),
        helper.make_node("Mul", ["plane", "nothing8"], ["label_map"]),
    ]
    initializers = [
        numpy_helper.from_array(np.array(value), key)
        for key, value in {
            "zero": np.int64(0),
            "one": np.int64(1),
            "true": np.bool_(True),
            "turns_each": np.int64(turns),
            "turns_at_least": np.int64(turns_at_least),
        }.items()
    ]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("label_map", TensorProto.UINT8, ["N", "H", "W"])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: contract(name).to_json()})
    onnx.checker.check_model(model)
    return write_file(model, repository, name)
