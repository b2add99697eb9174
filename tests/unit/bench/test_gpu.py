"""The GPU benchmark on the CPU, tiny: every part runs, and counts what it says it counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu import device, end_to_end, generators, kernels, networks, rpc_load, sessions
from bench.gpu.__main__ import SHARES, main
from bench.gpu.latency import Scale
from bench.gpu.networks import NAMES, Exported
from bench.gpu.report import Budget, Result, tables
from bench.gpu.turns import take_turns
from bench.load import stages_of, timing_of

CUDA = "CUDAExecutionProvider"
MOBILE = "fcn8s-mobilenet_v1"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu-bench")


def run(work: Path, *words: str) -> tuple[int, dict[str, Any]]:
    out = work / "result.json"
    code = main(["--provider", "cpu", "--quick", "--networks", MOBILE, "--work", str(work),
                 "--out", str(out), *words])  # fmt: skip
    return code, json.loads(out.read_text())


@pytest.mark.timeout(240)
def test_everything_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(work)
    parts = result["parts"]
    assert code == 0
    assert {"date", "revision", "machine", "versions", "device_name"} <= set(result)
    assert result["weights"] == "random"
    assert set(SHARES) < set(parts)
    assert not [name for name, part in parts.items() if "failed" in part or "left_out" in part]

    assert parts["peak"]["tflops"]["fp32"] > 0
    rows = parts["latency"]["rows"]
    assert [(row["size"], row["batch"]) for row in rows] == [([40, 48], 1), ([40, 48], 2)]
    for row in rows:
        assert set(row["contenders"]) == {"fp32", "fp16", "fp16, from host"}
        got = row["contenders"]["fp32"]
        assert 0 < got["p50_ms"] <= got["p99_ms"]
        assert got["images_per_s"] == pytest.approx(1e3 * row["batch"] / got["mean_ms"], rel=0.01)
        flops_per_s = row["gflop_per_image"] * 1e9 * got["images_per_s"]
        share = flops_per_s / (parts["peak"]["tflops"]["fp32"] * 1e12)
        assert got["of_peak"] == pytest.approx(share, rel=0.2)
    (row,) = parts["torch"]["rows"]
    assert set(row["contenders"]) == {"onnxruntime", "eager", "compile"}
    assert row["onnxruntime_over_compile"] > 0

    rows = parts["end_to_end"]["rows"]
    loads = ["1 connections", "2 connections", "Poisson, 0.7 of the capacity"]
    assert [(row["transport"], row["load"]) for row in rows] == [
        (transport, load) for transport in ("rest", "grpc") for load in loads
    ]
    bare = parts["end_to_end"][f"session of {MOBILE}"]
    for row in rows:
        assert row["answered"] > 0
        assert row["hung_up"] == row["other_errors"] == 0
        assert set(row["stages"]) >= {"decode", "queue", "infer", "render"}
        stages = sum(row["stages"][s]["p50_ms"] for s in ("decode", "queue", "infer", "render"))
        assert 0 < stages <= row["latency"]["p99_ms"]
        assert row["of_session"] == pytest.approx(
            row["answered_per_s"] / bare["images_per_s"], abs=1e-3
        )
        assert row["device_busy"] is None
    (row,) = parts["kernels"]["rows"]
    assert 0.5 < sum(row["shares"].values()) <= 1.001
    assert f"| {MOBILE} | rest | 2 connections |" in capsys.readouterr().out


def test_what_there_was_no_time_for_is_measured_by_the_next_run(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(work, "--only", "peak", "--fresh")
    _, result = run(work, "--only", "end_to_end", "--minutes", "0")
    assert len(result["parts"]["end_to_end"]["not_reached"]) == 6
    path = work / "result.json"
    row = {"network": MOBILE, "transport": "rest", "answered_per_s": 1000.0, "of_session": 1.0,
           "latency": {"p50_ms": 1.0, "p99_ms": 1.0}, "device_busy": None}  # fmt: skip
    keys = end_to_end._keys(Exported(MOBILE, work, 0, 0), Scale().quick())
    result["parts"]["end_to_end"]["rows"] = [{**row, **key} for key in keys[:2] + keys[3:]]
    path.write_text(json.dumps(result))
    _, result = run(work, "--only", "end_to_end")
    part = result["parts"]["end_to_end"]
    assert part["not_reached"] == []
    (*others, last) = part["rows"]
    assert [row["answered_per_s"] for row in others] == [1000.0] * 5
    assert last["load"] == keys[2]["load"]
    assert 300 < last["offered_per_s"] < 1100  # 0.7 of the 1000 that were written there


def test_a_second_run_keeps_what_there_is(work: Path) -> None:
    code, before = run(work, "--only", "peak", "latency")
    assert code == 0
    code, after = run(work, "--only", "latency")
    assert code == 0
    assert after["parts"]["latency"]["rows"] == before["parts"]["latency"]["rows"]
    code, fresh = run(work, "--only", "peak", "--fresh")
    assert "latency" not in fresh["parts"]
    code, stopped = run(work, "--only", "latency", "--minutes", "0")
    assert stopped["parts"]["latency"]["not_reached"] == [
        f"{MOBILE} 40x48 batch 1", f"{MOBILE} 40x48 batch 2",
    ]  # fmt: skip


def test_a_part_that_fails_is_said_and_the_run_goes_on(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> float:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(device, "matrix_peak", broken)
    code, result = run(work, "--only", "peak", "kernels", "--fresh")
    assert code == 1
    assert result["parts"]["peak"]["failed"].startswith("RuntimeError: CUDA error")
    assert result["parts"]["kernels"]["rows"]
    monkeypatch.undo()
    code, result = run(work, "--only", "peak")
    assert code == 0
    assert "failed" not in result["parts"]["peak"]


def test_without_a_gpu_the_run_does_not_begin(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sessions, "preload", lambda provider: None)
    with pytest.raises(SystemExit, match="torch sees no GPU here"):
        main(["--work", str(work), "--out", str(work / "none.json")])


def test_a_session_does_not_fall_back_to_the_cpu_without_a_word(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = networks.prepare(MOBILE, work, narrow=True).fp32
    with pytest.raises(RuntimeError, match="has no CUDAExecutionProvider"):
        sessions.open_session(path, "cuda")
    # A provider that does not start leaves the session with the next one.
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: real(path, options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(RuntimeError, match="CUDAExecutionProvider does not start here"):
        sessions.open_session(path, "cuda", tf32=True)


def test_bound_runs_write_the_labels_of_plain_runs(work: Path) -> None:
    path = networks.prepare(MOBILE, work, narrow=True).fp32
    session = sessions.open_session(path, "cpu")
    batch = np.stack([networks.picture((24, 32), seed) for seed in range(2)])
    assert sessions.on_device(session, batch, "cpu")() is None
    found: Any = sessions.from_host(session, batch)()
    (labels,) = found
    assert labels.shape == (2, 24, 32)
    assert len(np.unique(labels)) > 1


def test_operations_are_those_that_torch_counts(work: Path) -> None:
    """But for the last upsampling, which the file has as convolutions of the coarse scores."""
    path = networks.prepare(MOBILE, work, narrow=True).fp32
    network = networks.make(MOBILE, narrow=True)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        scores = network.scores(torch.rand(1, 3, 40, 48) * 255)
    height, width = scores.shape[2:]
    last = 2 * 4 * networks.CLASSES * 64 * (height + 1) * (width + 1)
    assert networks.flops(path, (40, 48)) == counter.get_total_flops() + last


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_whole_or_narrow(name: str) -> None:
    with torch.device("meta"):
        whole = networks._BACKBONES[name][0]()
    network = networks.make(name, narrow=True)
    assert type(network.backbone) is type(whole)
    sizes = [sum(p.numel() for p in each.parameters()) for each in (network.backbone, whole)]
    assert sizes[0] * 30 < sizes[1]
    with torch.inference_mode():
        logits = network(torch.rand(1, 3, 40, 48) * 255)
    assert logits.shape == (1, networks.CLASSES, 40, 48)
    assert logits.std() > 0


def test_turns_count_calls_and_images() -> None:
    calls = {"a": 0, "b": 0}

    def call(name: str) -> None:
        calls[name] += 1

    found = take_turns({n: lambda n=n: call(n) for n in calls}, 4, 0.0, 3)  # type: ignore[misc]
    # One to allocate, then in each of three rounds one to warm up and one that counts.
    assert calls == {"a": 7, "b": 7}
    assert [row["count"] for row in found.values()] == [3, 3]


def test_a_budget_is_shared() -> None:
    now = [0.0]
    budget = Budget.of(60, lambda: now[0])
    assert budget.share(3).left_s == 20
    now[0] = 45
    assert budget.share(3).left_s == 5
    now[0] = 100
    assert budget.left_s == 0


def test_another_devices_result_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    Result(path, {"device_name": "H100", "quick": False}, fresh=False).add("peak", {"a": 1})
    assert Result(path, {"device_name": "H100", "quick": False}, False).rows("peak") == [{"a": 1}]
    for other in ({"device_name": "H200", "quick": False}, {"device_name": "H100", "quick": True}):
        assert Result(path, other, False).rows("peak") == []


def test_several_generators_are_one_load() -> None:
    def one(latencies: list[float], answered: int) -> dict[str, Any]:
        counts = dict.fromkeys(generators._SUMS, 0)
        return {
            **counts, "answered": answered, "answered_per_s": answered / 2,
            "latencies_ms": latencies, "lag_p99_ms": latencies[0],
            "stages_ms": {"infer": latencies},
        }  # fmt: skip

    found = generators.merged([one([1.0, 2.0], 2), one([30.0], 1)])
    assert (found["answered"], found["answered_per_s"], found["generators"]) == (3, 1.5, 2)
    assert found["latency"]["p50_ms"] == found["stages"]["infer"]["p50_ms"] == 2.0
    assert found["lag_p99_ms"] == 30.0
    assert generators.merged([one([1.0], 0)])["latency"]["p99_ms"] == 1.0


def test_a_generator_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)bench\.load failed: .*nowhere\.jpg"):
        generators.closed("rest", "http://127.0.0.1:9", tmp_path / "nowhere.jpg", 1, 0.1, 0, 1)


async def test_a_server_that_is_not_there_is_no_answer() -> None:
    client = rpc_load.RpcClient("127.0.0.1:9", b"body", 0.3)
    client.begin()
    answer = await client.answer(0.0)
    await client.close()
    assert answer.status in (503, 504)
    assert answer.timing == b""


def test_stages_are_read_from_the_header() -> None:
    assert stages_of(b"decode;dur=1.5, infer;dur=20.25") == {"decode": 1.5, "infer": 20.25}
    assert stages_of(b"cache") == {}
    assert stages_of(timing_of({"decode": 1.5, "infer": 20.25})) == {"decode": 1.5, "infer": 20.25}


def test_a_profile_is_of_kernels_where_it_has_them() -> None:
    node = {"cat": "Node", "name": "n", "dur": 30,
            "args": {"op_name": "Conv", "provider": "CPUExecutionProvider"}}  # fmt: skip
    other = {**node, "dur": 10, "args": {"op_name": "Cast", "provider": "CUDAExecutionProvider"}}
    assert kernels.shares_of([node, other, {"cat": "Session", "name": "run", "dur": 99}]) == {
        "Conv (CPU)": 0.75, "Cast (CUDA)": 0.25,
    }  # fmt: skip
    kernel = {"cat": "Kernel", "name": "sm90_xmma_fprop", "dur": 5, "args": {}}
    assert kernels.shares_of([node, kernel]) == {"sm90_xmma_fprop": 1.0}


def test_nvidia_smi_is_read_or_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '1980 MHz, 3201 MHz, 41, 240.5 W'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert device.clocks()["clocks.sm"] == "1980 MHz"
    program.write_text("#!/bin/sh\necho '87 %'\n")
    assert device._utilisation_said() == 0.87
    program.write_text("#!/bin/sh\necho no device; exit 9\n")
    assert device.clocks() == {}
    assert device._utilisation_said() is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert device.clocks() == {}


def test_the_share_of_time_that_a_gpu_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.5, 1.0, None] + [0.75] * 1000)
    monkeypatch.setattr(device, "_utilisation", lambda: lambda: next(shares))
    monkeypatch.setattr(device, "_PERIOD_S", 0.001)
    with device.watching("cuda") as busy:
        while len(busy.shares) < 4:
            pass
    assert busy.shares[:4] == [0.5, 1.0, 0.75, 0.75]
    assert busy.mean is not None and 0.5 < busy.mean < 1
    with device.watching("cpu") as busy:
        pass
    assert busy.mean is None


def test_tables_of_a_gpu() -> None:
    row = {"network": "n", "transport": "grpc", "load": "4 connections", "answered_per_s": 10.0,
           "of_session": 0.9, "latency": {"p50_ms": 1.0, "p99_ms": None},
           "device_busy": 0.875}  # fmt: skip
    (*_, line) = tables({"end_to_end": {"rows": [row]}})
    assert line == "| n | grpc | 4 connections | 10.0 | 0.90 | 1.0 ms | - | 88% |"
    assert list(tables({})) == []


def test_the_scale_of_a_gpu_is_that_of_the_plan() -> None:
    scale = Scale()
    assert set(scale.sizes) == {(500, 500), (360, 480)}
    assert set(scale.batches) == {1, 2, 4, 8, 16}
    assert scale.connections[0] == 1 and scale.connections[-1] == 64
