"""Runs an ONNX file in ONNX Runtime, on GPUs (`cuda`) or on the CPU.

Session options follow what users of the runtime reported, by issue number of microsoft/onnxruntime.
"""

from __future__ import annotations

import logging
import threading
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model.contract import Contract, ContractError
from service.config import SegmenterConfig
from service.core.engines.cuda import (
    CPU,
    EXECUTION_PROVIDERS,
    OrtInstance,
    built_for,
    open_instances,
)
from service.core.engines.onnx_outputs import without_output
from service.core.engines.warm_up import first_line
from service.core.types import Float32Array, Network, UInt8Array
from service.errors import ModelLoadError

_BRIEF_SPINNING: Final = (1, 31)
"""Version tried. Those without the option would spin for many milliseconds, and not say so."""
PROVIDERS: Final = ("auto", "cpu", *EXECUTION_PROVIDERS)
"""Names in settings, metrics and replies."""

COPIES_BYTES: Final = 256 * 1024 * 1024
"""Bytes of weights that instances of one thread may have for themselves. Callers of one session
share its pool of memory: in 8 bits on a Zen 4 they did 0.80 to 0.93 of the images per second that
two sessions do (bench/LOG.md). Callers of a session of several threads would share those, too."""
_log = logging.getLogger(__name__)


def open_onnx_runtime(
    path: Path,
    *,
    provider: str = "auto",
    threads: int,
    instances: int = 1,
    alone_threads: int = 0,
    gpu: SegmenterConfig | None = None,
) -> Network:
    """Loads a file and holds it to its contract.

    provider: one of `PROVIDERS`; "auto" is CUDA where this build and machine have it, else the CPU.
    threads, instances, alone_threads: of the CPU, see `cores.Plan`. gpu: what says how to use GPUs.

    Raises: ModelLoadError in one line that names the file and what is wrong with it.
    """
    if provider not in PROVIDERS:
        raise ModelLoadError(f"provider {provider!r}: choose one of {', '.join(PROVIDERS)}")
    on_gpu = provider != "cpu" and (provider != "auto" or built_for("cuda"))
    # On a GPU it only reads the contract, by which the options of the others are chosen.
    session = _open(path, threads, optimise=not on_gpu)
    try:
        metadata = session.get_modelmeta().custom_metadata_map
        contract = Contract.from_metadata(metadata, str(path))
    except ContractError as error:
        raise ModelLoadError(str(error)) from error
    _check_signature(session, contract, path)
    if on_gpu:
        network = _open_on_gpus(path, contract, provider, gpu or SegmenterConfig())
        if network is not None:
            return network
        session = _open(path, threads)
    wanted = "cuda" if on_gpu else ""
    scores = _Scores(path, threads, session)
    source: Path | bytes = path
    if contract.outputs.logits is not None:
        # A run computes every output there is, which took the shipped network in 8 bits a sixth
        # longer; to say which are wanted takes the runtime long, too (bench/LOG.md).
        try:
            source = without_output(path, contract.outputs.logits)
            session = _open(path, threads, body=source)
            scores = _Scores(path, threads)
        except (OSError, ValueError, ModelLoadError) as error:  # as for weights in another file
            _log.warning("%s computes its logits in each run: %s", path, first_line(error))
            source = path
    opened_from = partial(_open, path, body=source if isinstance(source, bytes) else None)
    sessions = [session]
    if threads > 1 or (instances - 1) * path.stat().st_size <= COPIES_BYTES:
        sessions += [opened_from(threads) for _ in range(instances - 1)]
    else:
        # A session of one thread has none of its own: it runs on its callers', at once.
        sessions *= instances
    opened = [CpuInstance(session, contract, scores) for session in sessions]
    if alone_threads > threads:
        lone = opened_from(alone_threads, spin=True)
        opened.append(CpuInstance(lone, contract, scores, full_device=True))
    return Network(path, contract, "cpu", opened, instead_of=wanted)


def _open_on_gpus(
    path: Path, contract: Contract, provider: str, config: SegmenterConfig
) -> Network | None:
    """Returns None when "auto" is to make do with the CPU.

    Raises: ModelLoadError when a GPU is asked for and cannot be had.
    """
    wanted = "cuda" if provider == "auto" else provider
    try:
        return Network(path, contract, wanted, open_instances(path, contract, wanted, config))
    except ModelLoadError as error:
        if provider != "auto":
            raise ModelLoadError(
                f"{path} does not run on {wanted} here: {error}: mend that, or set FCN_PROVIDER=cpu"
            ) from error
        _log.warning("%s runs on the CPU, not on a GPU: %s", path, error)
        return None


class _Scores:
    """Keeps the session that computes logits, which is opened when they are first asked for."""

    def __init__(self, path: Path, threads: int, session: ort.InferenceSession = None) -> None:
        """session: where there is one that computes them anyway."""
        self._path, self._threads = path, threads
        self._opening = threading.Lock()
        self._session = session

    def session(self) -> ort.InferenceSession:
        """Raises: ModelLoadError."""
        with self._opening:
            if self._session is None:
                self._session = _open(self._path, self._threads)
            return self._session


class CpuInstance(OrtInstance):
    """Calls one session of ONNX Runtime on the CPU, which may be shared with other instances."""

    def __init__(
        self,
        session: ort.InferenceSession,
        contract: Contract,
        scores: _Scores,
        *,
        full_device: bool = False,
    ) -> None:
        self._session = session
        self._scores = scores
        self._contract = contract
        self._image = contract.input.name
        self._one_input = contract.input.sizes is None
        self.full_device = full_device

    def run(self, batch: UInt8Array) -> UInt8Array:
        """Raises whatever the runtime raises."""
        names = [self._contract.outputs.label_map]
        self._options = ort.RunOptions()
        (label_maps,) = self._session.run(names, self._feeds(batch), self._options)
        return np.asarray(label_maps, np.uint8)

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        """Raises whatever the runtime raises."""
        outputs = self._contract.outputs
        names = [outputs.label_map, outputs.logits]
        self._options = ort.RunOptions()
        session = self._scores.session()
        label_maps, logits = session.run(names, self._feeds(batch), self._options)
        return np.asarray(label_maps, np.uint8), np.asarray(logits, np.float32)

    def _feeds(self, batch: UInt8Array) -> dict[str, npt.NDArray[Any]]:
        # Files of earlier versions alone have a second input.
        return {self._image: batch} if self._one_input else self._contract.feeds(batch)


def _open(
    path: Path,
    threads: int,
    *,
    spin: bool = False,
    optimise: bool = True,
    body: bytes | None = None,
) -> ort.InferenceSession:
    """Opens a session on the CPU, of `body` where that is not what the file holds.

    spin: threads wait for the next part of a run without sleeping, where that can be kept brief.
    optimise: False opens faster and runs slowly.

    Raises: ModelLoadError.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Plans memory for one shape and keeps a plan for each it has seen (#11118).
    options.enable_mem_pattern = False
    # Spinning between runs takes the cores that decode and render need (#27916). Briefly, and where
    # nothing else wants them, it made a lone image 5 % faster.
    spin = spin and _version() >= _BRIEF_SPINNING
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if spin:
        options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    options.log_severity_level = 4  # what goes wrong is raised, and logged in our own lines
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(body or str(path), options, providers=[CPU])
    except Exception as error:  # its exceptions share no base class below Exception
        raise ModelLoadError(
            f"{path} cannot be loaded as an ONNX model: {first_line(error)}"
        ) from error


def _version() -> tuple[int, ...]:
    """Returns (1, 31) for 1.31.1."""
    return tuple(int(part) for part in ort.__version__.split(".")[:2])


def _check_signature(session: ort.InferenceSession, contract: Contract, path: Path) -> None:
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    names = {name for name in (contract.input.name, contract.input.sizes) if name is not None}
    if set(inputs) != names:
        raise ModelLoadError(
            f"{path}: the contract's inputs are {sorted(names)} and the graph's are "
            f"{sorted(inputs)}: they must be the same"
        )
    if contract.input.sizes is not None:
        _check_tensor(inputs[contract.input.sizes], "tensor(int64)", ("N", 2), path)
    _check_tensor(inputs[contract.input.name], "tensor(uint8)", ("N", "H", "W", 3), path)
    classes = len(contract.classes)
    wanted: dict[str, tuple[str, tuple[str | int, ...]]] = {
        contract.outputs.label_map: ("tensor(uint8)", ("N", "H", "W"))
    }
    if contract.outputs.logits is not None:
        wanted[contract.outputs.logits] = ("tensor(float)", ("N", classes, "H", "W"))
    for name, (dtype, shape) in wanted.items():
        if name not in outputs:
            raise ModelLoadError(
                f"{path}: the contract names an output {name!r} and the graph has "
                f"{sorted(outputs)}: export it again"
            )
        _check_tensor(outputs[name], dtype, shape, path)


def _check_tensor(node: Any, dtype: str, shape: tuple[str | int, ...], path: Path) -> None:
    """Checks sizes: numbers must be those or unknown (a string or None); letters may be any."""
    fits = len(node.shape) == len(shape) and all(
        isinstance(want, str) or not isinstance(got, int) or got == want
        for got, want in zip(node.shape, shape, strict=True)
    )
    if node.type != dtype or not fits:
        raise ModelLoadError(
            f"{path}: tensor {node.name!r} is {node.type} {node.shape}, and must be {dtype} "
            f"[{', '.join(map(str, shape))}]: export it again"
        )
