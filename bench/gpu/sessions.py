"""ONNX Runtime on the device, without the server: options as it sets them, buffers bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

UInt8Array = npt.NDArray[np.uint8]
Run = Callable[[], object]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def preload(provider: str) -> None:
    """The CUDA libraries that pip put beside the wheel, or torch's."""
    if provider == "cuda":
        onnxruntime.preload_dlls()


def open_session(
    path: Path, provider: str, *, tf32: bool = False, nhwc: bool = False
) -> onnxruntime.InferenceSession:
    """Raises: RuntimeError where ONNX Runtime would fall back to the CPU without a word."""
    if _PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this build of ONNX Runtime has no {_PROVIDERS[provider]}")
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted: Any = _PROVIDERS[provider]
    if provider == "cuda":
        chosen = {
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": str(int(tf32)),
            "prefer_nhwc": str(int(nhwc)),
        }
        wanted = (_PROVIDERS[provider], chosen)
    session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    if session.get_providers()[0] != _PROVIDERS[provider]:
        raise RuntimeError(f"{_PROVIDERS[provider]} does not start here: {path} ran on the CPU")
    return session


def on_device(session: onnxruntime.InferenceSession, batch: UInt8Array, provider: str) -> Run:
    """Images already there, labels left there: what the network alone takes."""
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
    """From and to ordinary memory of the host."""
    return lambda: session.run(["label_map"], {"image": batch})
