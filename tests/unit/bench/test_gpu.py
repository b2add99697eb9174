"""The GPU benchmark on the CPU, tiny: every part runs, and counts what it says it counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from bench import images
from bench.gpu import device, latency, networks
from bench.gpu.__main__ import PARTS, main
from bench.networks import make
from model.export.export import ServedNetwork

CUDA = "CUDAExecutionProvider"
NETWORK = "vgg16"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu-bench")


def run(work: Path, *words: str) -> tuple[int, dict[str, Any]]:
    out = work / "result.json"
    where = ["--work", str(work), "--out", str(out)]
    code = main(["--provider", "cpu", "--quick", "--networks", NETWORK, *where, *words])
    return code, json.loads(out.read_text())


@pytest.mark.timeout(240)
def test_everything_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(work)
    parts = result["parts"]
    assert code == 0
    assert {"date", "revision", "machine", "versions", "device_name"} <= set(result)
    assert set(parts) == set(PARTS)
    rows = parts["latency"]["rows"]
    assert [(row["size"], row["batch"]) for row in rows] == [([40, 48], 1), ([40, 48], 2)]
    both = {"fp32", "fp16", "fp16, from host"}
    assert set(rows[0]["contenders"]) == {*both, "torch", "torch, compiled"}
    assert set(rows[1]["contenders"]) == both
    for row in rows:
        got = row["contenders"]["fp32"]
        assert got["images_per_s"] == pytest.approx(1e3 * row["batch"] / got["mean_ms"], rel=0.02)
    rows = parts["served"]["rows"]
    assert [(row["transport"], row["connections"]) for row in rows] == [
        (transport, connections) for transport in ("rest", "grpc") for connections in (1, 2)
    ]
    for row in rows:
        assert row["answered"] > 0
        assert row["hung_up"] == row["other_errors"] == 0
        assert row["of_session"] > 0
    assert f"| {NETWORK} | 40x48 | 2 | fp16, from host |" in capsys.readouterr().out


def test_a_part_that_fails_is_said_and_the_others_stay(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    path = work / "result.json"
    head = {"device_name": "cpu", "quick": True}
    path.write_text(json.dumps({**head, "parts": {"served": {"rows": []}}}))
    monkeypatch.setattr(latency, "take_turns", broken)
    code, result = run(work, "--only", "latency")
    assert code == 1
    assert result["parts"]["latency"]["failed"].startswith("RuntimeError: CUDA error")
    assert result["parts"]["served"] == {"rows": []}
    # Another device's parts are not kept.
    path.write_text(json.dumps({**head, "device_name": "H200", "parts": {"served": {}}}))
    _, result = run(work, "--only", "latency")
    assert set(result["parts"]) == {"latency"}


def test_without_a_gpu_the_run_does_not_begin(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="torch sees no GPU here"):
        main(["--work", str(work), "--out", str(work / "none.json")])


def test_a_session_does_not_fall_back_to_the_cpu_without_a_word(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = networks.prepare(NETWORK, work, narrow=True).fp32
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RuntimeError, match="has no CUDAExecutionProvider"):
        device.open_session(path, "cuda")
    # A provider that does not start leaves the session with the next one.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(RuntimeError, match="CUDAExecutionProvider does not start here"):
        device.open_session(path, "cuda", tf32=True)


def test_bound_runs_and_torch_have_the_labels_of_plain_runs(work: Path) -> None:
    path = networks.prepare(NETWORK, work, narrow=True).fp32
    session = device.open_session(path, "cpu")
    batch = images.batch(2, (40, 48))
    assert device.on_device(session, batch, "cpu")() is None
    found: Any = device.from_host(session, batch)()
    (labels,) = found
    assert labels.shape == (2, 40, 48)
    assert len(np.unique(labels)) > 1
    served = ServedNetwork(make(networks.spec(NETWORK, narrow=True)), logits=False).eval()
    same = latency.run(served, torch.from_numpy(batch)).numpy() == labels
    assert same.mean() > 0.999


@pytest.mark.parametrize("name", networks.NAMES)
def test_every_network_has_a_spec(name: str) -> None:
    assert networks.spec(name, narrow=False).backbone == name


def test_nvidia_smi_is_read_or_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '1980 MHz, 240.5 W'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert device._nvidia_smi("clocks.sm,power.draw")["clocks.sm"] == "1980 MHz"
    program.write_text("#!/bin/sh\necho no device; exit 9\n")
    assert device._nvidia_smi("clocks.sm,power.draw") == {}
