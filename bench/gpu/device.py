"""Asks the device what it is, and opens sessions on it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from bench.images import UInt8Array
from bench.turns import Run

_QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,memory.total"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def describe(provider: str) -> dict[str, Any]:
    """Gives `device_name`, and of a GPU what nvidia-smi tells.

    Raises: SystemExit where there is no GPU.
    """
    if provider == "cpu":
        return {"device_name": "cpu"}
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here: check the driver, or say --provider cpu")
    # The CUDA libraries that pip put beside the wheel, or torch's.
    onnxruntime.preload_dlls()
    known = {"device_name": torch.cuda.get_device_name(0), "cuda": torch.version.cuda}
    return known | _nvidia_smi(_QUERY)


def _nvidia_smi(fields: str) -> dict[str, str]:
    """Asks about the first GPU; empty where there is no such program or answer."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in next(iter(done.stdout.splitlines()), "").split(",")]
    names = fields.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


def synchronize(provider: str) -> None:
    if provider != "cpu":
        torch.cuda.synchronize()


def open_session(
    path: Path, provider: str, *, tf32: bool = False, nhwc: bool = False
) -> onnxruntime.InferenceSession:
    """Raises: RuntimeError where ONNX Runtime would fall back to the CPU without a word."""
    wanted = _PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this build of ONNX Runtime has no {wanted}")
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen = {} if provider == "cpu" else {
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": str(int(tf32)),
        "prefer_nhwc": str(int(nhwc)),
    }  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), options, providers=[(wanted, chosen)])
    if session.get_providers()[0] != wanted:
        raise RuntimeError(f"{wanted} does not start here: {path} ran on the CPU")
    return session


def on_device(session: onnxruntime.InferenceSession, batch: UInt8Array, provider: str) -> Run:
    """Makes a run whose images are on the device, and whose labels stay there."""
    count, height, width, _ = batch.shape
    binding = session.io_binding()
    images = onnxruntime.OrtValue.ortvalue_from_numpy(batch, provider, 0)
    labels = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
        (count, height, width), np.uint8, provider, 0
    )
    binding.bind_ortvalue_input("image", images)
    binding.bind_ortvalue_output("label_map", labels)
    return lambda: session.run_with_iobinding(binding)


def from_host(session: onnxruntime.InferenceSession, batch: UInt8Array) -> Run:
    """Makes a run from and to ordinary memory of the host."""
    return lambda: session.run(["label_map"], {"image": batch})
