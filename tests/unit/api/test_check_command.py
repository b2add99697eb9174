"""`fcn serve --check` and `fcn doctor`: what would stop a start, and what the machine has."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import trustme

from cli.main import main
from service.core.engines.cores import available_cores, cpu_flags, multiplies_int8
from service.core.engines.memory import available_memory_bytes
from tests.tiny_models import write_model

RULE = "groups: [{{name: a, rules: [{{record: 'fcn:a', expr: '{}'}}]}}]"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    write_model(folder)
    monkeypatch.setenv("FCN_MODEL_REPOSITORY", str(folder))
    monkeypatch.setenv("FCN_HTTP_PORT", "0")
    monkeypatch.setenv("FCN_GRPC_PORT", "0")
    return folder


def test_all_is_well(repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, rules = tmp_path / "keys", tmp_path / "rules.yml"
    keys.write_text("a 0123456789abcdef0123456789abcdef role=admin\n")
    keys.chmod(0o600)
    rules.write_text(RULE.format("rate(fcn_request_duration_seconds_bucket[5m])"))
    cert = trustme.CA().issue_cert("localhost")
    cert.private_key_pem.write_to_path(str(tmp_path / "key"))
    cert.cert_chain_pems[0].write_to_path(str(tmp_path / "cert"))
    tls = [f"--tls-cert={tmp_path / 'cert'}", f"--tls-key={tmp_path / 'key'}"]
    assert main(["serve", "--check", f"--api-keys-file={keys}", f"--rules={rules}", *tls]) == 0
    out = capsys.readouterr().out
    assert "FAULT" not in out
    assert "ok    keys: 1 keys; 1 may change" in out
    assert re.search(r"certificate: valid until \d{4}-", out)
    assert re.search(r"model tiny/1: cpu \(.*3 classes, model.onnx sha256:[0-9a-f]{16}", out)
    assert "names: tiny is the default" in out


def test_every_fault_has_its_line(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(repository, "other")
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"not a model")
    (repository / "other" / "model.toml").write_text("max_batch = 'x'")
    rules = tmp_path / "rules.yml"
    rules.write_text(RULE.format("fcn_request_total"))
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        flags = [f"--http-port={port}", f"--api-keys-file={tmp_path / 'none'}", f"--rules={rules}"]
        flags += [f"--tls-cert={tmp_path / 'none'}", f"--tls-key={tmp_path / 'none'}"]
        assert main(["serve", "--check", *flags]) == 1
    lines = capsys.readouterr().out.splitlines()
    faults = {line[6:].partition(":")[0]: line for line in lines if line.startswith("FAULT")}
    named = {"keys", "certificate", "http port", "model broken/1", "model other", "rules"}
    assert set(faults) == named
    assert "FCN_HTTP_PORT" in faults["http port"] and "max_batch" in faults["model other"]
    assert "fcn_request_total" in faults["rules"]
    assert "ok    model tiny/1" in "\n".join(lines)
    assert lines[-1] == "fcn serve would not start: 6 faults"


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--http-port=many"], "settings: FCN_HTTP_PORT='many'"),
        (["--default-model=gone"], "names: the default model 'gone'"),
        (["--model-repository=/nowhere"], "models: model repository '/nowhere'"),
    ],
)
def test_a_fault(
    repository: Path, flags: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--check", *flags]) == 1
    assert f"FAULT {fault}" in capsys.readouterr().out


def test_rules_are_looked_at_with_check_only(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", f"--rules={tmp_path}"]) == 1
    assert "--check" in capsys.readouterr().err


def test_doctor(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "onnxruntime" in found["versions"]
    assert found["cores"].startswith(f"{available_cores()} of ")
    assert found["memory"].startswith(f"{available_memory_bytes() / 1024**3:.1f} GiB")
    assert "onnxruntime" in found[f"model {repository / 'tiny' / '1' / 'model.onnx'}"]
    assert found["gpu"]
    quantized = any(text.startswith("fcn quantize --to int8") for text in found["advice"])
    assert quantized is multiplies_int8(cpu_flags())


def test_doctor_without_models(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FCN_MODEL_REPOSITORY", "/nowhere")
    assert main(["doctor"]) == 0
    assert "models:    model repository '/nowhere' is not a folder" in capsys.readouterr().out
