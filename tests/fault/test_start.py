"""A start that cannot succeed: one line on stderr that says what to do, exit code not 0."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import ROOT, START_TIMEOUT_S, command, environment, fail_to_start
from tests.tiny_models import build, write_file, write_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def assert_one_line(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code not in (0, None)
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_missing_repository(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    result = fail_to_start(model_repository=missing, http_port=0, grpc_port=0)
    assert_one_line(result, str(missing), "FCN_MODEL_REPOSITORY")


def test_empty_repository(tmp_path: Path) -> None:
    result = fail_to_start(model_repository=tmp_path, http_port=0, grpc_port=0)
    assert_one_line(result, str(tmp_path), "model.onnx")


def test_model_without_a_contract(tmp_path: Path) -> None:
    path = write_file(build(), tmp_path)
    result = fail_to_start(model_repository=tmp_path, http_port=0, grpc_port=0)
    assert_one_line(result, str(path), "contract", "fcn export")


def test_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "tiny" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a model")
    result = fail_to_start(model_repository=tmp_path, http_port=0, grpc_port=0)
    assert_one_line(result, str(path))


def test_unknown_default_model(repository: Path) -> None:
    result = fail_to_start(
        model_repository=repository,
        http_port=0,
        grpc_port=0,
        default_model="other",
        log_level="warning",  # else a line says that the models themselves were loaded
    )
    assert_one_line(result, "'other'", "tiny")


@pytest.mark.parametrize("setting", ["http_port", "grpc_port"])
def test_busy_port(repository: Path, busy_port: int, setting: str) -> None:
    ports: dict[str, object] = {"http_port": 0, "grpc_port": 0, setting: busy_port}
    result = fail_to_start(model_repository=repository, **ports)
    assert_one_line(result, str(busy_port), f"FCN_{setting.upper()}")


def test_host_of_another_machine(repository: Path) -> None:
    result = fail_to_start(model_repository=repository, http_port=0, grpc_port=0, host="192.0.2.1")
    assert_one_line(result, "192.0.2.1")


def test_same_port_twice(repository: Path) -> None:
    result = fail_to_start(model_repository=repository, http_port=9000, grpc_port=9000)
    assert_one_line(result, "FCN_HTTP_PORT", "FCN_GRPC_PORT", "9000")


def test_value_out_of_range(repository: Path) -> None:
    result = fail_to_start(model_repository=repository, http_port="many")
    assert_one_line(result, "FCN_HTTP_PORT='many'", "integer")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FCN_MAX_IMAGE_BYTE", "5", ("FCN_MAX_IMAGE_BYTE ", "FCN_MAX_IMAGE_BYTES")),
        ("FCN_HTTP_PORT", "70000", ("FCN_HTTP_PORT='70000'", "65535")),
        ("FCN_PROVIDER", "tpu", ("FCN_PROVIDER='tpu'", "'cuda'")),
    ],
)
def test_bad_environment(repository: Path, name: str, value: str, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        command(model_repository=repository),
        cwd=ROOT,
        env=environment(**{name: value}),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
    )
    assert_one_line((done.returncode, done.stdout, done.stderr), *words)
