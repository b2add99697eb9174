"""ONNX Runtime as a GPU build with GPUs: its sessions run on the CPU and say otherwise."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

import onnxruntime as ort
import pytest

from service.core.engines import cuda
from service.errors import ModelLoadError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
GPUS = 2


@dataclass
class Opened:
    """A session on a pretended GPU. runs: how many. nice: of the threads of those."""

    providers: list[tuple[str, dict[str, str]]]
    options: ort.SessionOptions
    fallback: int
    runs: int = 0
    nice: set[int] = field(default_factory=set)

    @property
    def told(self) -> dict[str, str]:
        """The options of the provider that was asked for first."""
        return self.providers[0][1]


@dataclass
class Pretended:
    """Says how the GPUs behave, and keeps what was opened.

    gpus: how many, or why there are none. starts: providers that do. on_cpu: operators that no GPU
    takes. fails: what opening raises. complaint: what preloading prints. missing: what the system's
    loader says. opened: sessions asked to run on a GPU.
    """

    gpus: int | ModelLoadError
    starts: tuple[str, ...]
    on_cpu: frozenset[str] = frozenset()
    fails: Exception | None = None
    complaint: str = ""
    missing: str = ""
    opened: list[Opened] = field(default_factory=list)


@dataclass
class _Node:
    op_type: str


@dataclass
class _Part:
    ep_name: str
    op_type: str

    def get_nodes(self) -> list[_Node]:
        return [_Node(self.op_type)]


class _OnGpu:
    def __init__(self, session: Any, pretended: Pretended, opened: Opened) -> None:
        self._session = session
        self._pretended = pretended
        self._opened = opened

    def get_providers(self) -> list[str]:
        return [
            name for name, _ in self._opened.providers if name in (*self._pretended.starts, CPU)
        ]

    def get_provider_graph_assignment_info(self) -> list[_Part]:
        asked = "session.record_ep_graph_assignment_info"
        assert self._opened.options.get_session_config_entry(asked) == "1"
        operators = [
            node.op_type
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]
        return [_Part(CPU if op in self._pretended.on_cpu else CUDA, op) for op in operators]

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._opened.runs += 1
        self._opened.nice.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        self._session.run_with_iobinding(binding, options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    *,
    gpus: int | ModelLoadError = GPUS,
    build: tuple[str, ...] = (TENSORRT, CUDA, CPU),
    starts: tuple[str, ...] = (TENSORRT, CUDA),
    **more: Any,
) -> Pretended:
    pretended = Pretended(gpus, starts, **more)
    real = ort.InferenceSession

    def open_session(
        path: str, options: ort.SessionOptions, providers: Any, enable_fallback: int = 1
    ) -> Any:
        session = real(path, options, providers=[CPU])
        if providers == [CPU]:
            return session
        opened = Opened(providers, options, enable_fallback)
        pretended.opened.append(opened)
        if pretended.fails:
            raise pretended.fails
        return _OnGpu(session, pretended, opened)

    def count_gpus(cuda_major: int | None) -> int:
        if isinstance(pretended.gpus, ModelLoadError):
            raise pretended.gpus
        return pretended.gpus

    monkeypatch.setattr(ort, "InferenceSession", open_session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(build))
    monkeypatch.setattr(ort, "preload_dlls", lambda: print(pretended.complaint, end=""))
    monkeypatch.setattr(cuda, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "count_gpus", count_gpus)
    monkeypatch.setattr(cuda, "_missing_library", lambda provider: pretended.missing)
    # The memory of "GPU 1" is the CPU's, which has the number 0 alone.
    allocate = ort.OrtValue.ortvalue_from_shape_and_type
    monkeypatch.setattr(
        ort.OrtValue,
        "ortvalue_from_shape_and_type",
        lambda shape, dtype, device, index: allocate(shape, dtype, device, 0),
    )
    return pretended
