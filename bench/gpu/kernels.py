"""Where a session's time goes, by operator, as ONNX Runtime's own profile has it."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import onnxruntime

from bench.gpu.latency import Scale, batch_of
from bench.gpu.networks import Exported
from bench.gpu.report import Budget, Result

PART = "kernels"
_RUNS = 5
_MOST = 12


def measure(
    exported: list[Exported], provider: str, scale: Scale, result: Result, budget: Budget
) -> None:
    """Rows of `PART`: share of the time of each kind of operator, fp16, in the largest batch of
    `torch_batches`. Where ONNX Runtime's build does not time a GPU's kernels, it is the time that
    launching them takes."""
    for network in exported:
        key = {"network": network.name, "size": list(scale.sizes[0])}
        if result.has(PART, key) or not budget.left_s:
            continue
        batch = max(scale.torch_batches)
        shares = _shares(network.fp16, provider, batch_of(batch, scale.sizes[0]))
        result.add(PART, {**key, "batch": batch, "shares": shares})


def _shares(path: Path, provider: str, images: Any) -> dict[str, float]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    wanted = ["CPUExecutionProvider"]
    if provider == "cuda":
        wanted.insert(0, "CUDAExecutionProvider")
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        for _ in range(_RUNS):
            session.run(["label_map"], {"image": images})
        events = json.loads(Path(session.end_profiling()).read_text())
    return shares_of(events)


def shares_of(events: list[dict[str, Any]]) -> dict[str, float]:
    """Of a profile's events: of the GPU's kernels where it has them, else of the operators."""
    times: dict[str, float] = defaultdict(float)
    kernels = [event for event in events if event.get("cat") == "Kernel"]
    for event in kernels:
        times[str(event.get("args", {}).get("op_name") or event["name"])[:60]] += event["dur"]
    for event in () if kernels else events:
        if event.get("cat") == "Node" and "op_name" in event.get("args", {}):
            provider = event["args"].get("provider", "").removesuffix("ExecutionProvider")
            times[f"{event['args']['op_name']} ({provider})"] += event["dur"]
    total = sum(times.values()) or 1.0
    longest = sorted(times.items(), key=lambda item: -item[1])[:_MOST]
    return {name: round(time / total, 4) for name, time in longest}
