"""ONNX Runtime as a GPU build with GPUs: its sessions run on the CPU and say otherwise."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

import onnxruntime as ort
import pytest

from service.core.engines import gpu_sessions
from service.core.engines.gpus import Gpu, NoGpu
from service.core.engines.pinned import Cpu

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
GPUS = [Gpu(0, "Pretend A", 1 << 34), Gpu(1, "Pretend B", 1 << 34)]


@dataclass
class Opened:
    """A session on a pretended GPU. graphs: of each run, the CUDA graph id and the thread. nice:
    of those threads."""

    providers: list[tuple[str, dict[str, str]]]
    options: ort.SessionOptions
    fallback: int
    graphs: list[tuple[str | None, int]] = field(default_factory=list)
    nice: list[int] = field(default_factory=list)

    @property
    def told(self) -> dict[str, str]:
        return self.providers[0][1]


@dataclass
class Pretended:
    """opened: sessions asked to run on a GPU. places: indexes of the GPUs of their memory.

    starts: providers that do. on_cpu: operators that no GPU takes. fails: what opening raises.
    complaint: what preloading prints. missing: what the system's loader says.
    """

    gpus: list[Gpu] | NoGpu
    starts: tuple[str, ...]
    on_cpu: frozenset[str] = frozenset()
    fails: Exception | None = None
    complaint: str = ""
    missing: str = ""
    opened: list[Opened] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    *,
    gpus: list[Gpu] | NoGpu = GPUS,
    build: tuple[str, ...] = (TENSORRT, CUDA, CPU),
    starts: tuple[str, ...] = (TENSORRT, CUDA),
    **more: Any,
) -> Pretended:
    told = Pretended(gpus, starts, **more)
    real = ort.InferenceSession

    class Node:
        def __init__(self, op_type: str) -> None:
            self.op_type = op_type

    class Part:
        def __init__(self, ep_name: str, op_type: str) -> None:
            self.ep_name = ep_name
            self._nodes = [Node(op_type)]

        def get_nodes(self) -> list[Node]:
            return self._nodes

    class OnGpu:
        def __init__(self, session: Any, opened: Opened) -> None:
            self._session = session
            self._opened = opened

        def get_providers(self) -> list[str]:
            return [n for n, _ in self._opened.providers if n in (*told.starts, CPU)]

        def get_provider_graph_assignment_info(self) -> list[Part]:
            asked = "session.record_ep_graph_assignment_info"
            assert self._opened.options.get_session_config_entry(asked) == "1"
            operators = [
                node.op_type
                for part in self._session.get_provider_graph_assignment_info()
                for node in part.get_nodes()
            ]
            return [Part(CPU if op in told.on_cpu else CUDA, op) for op in operators]

        def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
            graph = options and options.get_run_config_entry("gpu_graph_id")
            self._opened.graphs.append((graph, threading.get_ident()))
            self._opened.nice.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            self._session.run_with_iobinding(binding, options)

        def run(self, names: list[str], feeds: Any, options: Any = None) -> Any:
            graph = options and options.get_run_config_entry("gpu_graph_id")
            self._opened.graphs.append((graph, threading.get_ident()))
            return self._session.run(names, feeds, options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

    def open_session(
        path: str, options: ort.SessionOptions, providers: Any, enable_fallback: int = 1
    ) -> Any:
        session = real(path, options, providers=[CPU])
        if providers == [CPU]:
            return session
        opened = Opened(providers, options, enable_fallback)
        told.opened.append(opened)
        if told.fails:
            raise told.fails
        return OnGpu(session, opened)

    def visible(cuda_major: int | None) -> list[Gpu]:
        if isinstance(told.gpus, NoGpu):
            raise told.gpus
        return told.gpus

    def place(index: int, cuda_major: int) -> Cpu:
        told.places.append(index)
        return Cpu()

    def preload() -> None:
        if told.complaint:
            print(told.complaint)

    monkeypatch.setattr(ort, "InferenceSession", open_session)
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(build))
    monkeypatch.setattr(ort, "preload_dlls", preload)
    monkeypatch.setattr(gpu_sessions, "visible_gpus", visible)
    monkeypatch.setattr(gpu_sessions, "Cuda", place)
    monkeypatch.setattr(gpu_sessions, "_missing", lambda provider: told.missing)
    return told
