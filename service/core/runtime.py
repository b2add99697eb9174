"""One ONNX file on one device: the only module that knows ONNX Runtime.

Session options follow what users of the runtime reported, by issue number of microsoft/onnxruntime.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model.contract import Contract, ContractError
from service.core.types import Run
from service.errors import ModelLoadError

UInt8Array = npt.NDArray[np.uint8]

PROVIDERS: Final = ("auto", "cpu", "cuda")
_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_NAMES: Final = {_CPU: "cpu", _CUDA: "cuda"}
_log = logging.getLogger(__name__)


class Session:
    """A network ready to run; a `Network` of one instance.

    provider: where it runs, "cpu" or "cuda".
    """

    def __init__(self, path: Path, *, provider: str = "auto", threads: int) -> None:
        """Loads the file and holds it to its contract.

        provider: "cpu", "cuda", or "auto" for CUDA where this build and machine have it.
        threads: cores one run may use.

        Raises: ModelLoadError in one line that names the file and what is wrong with it.
        """
        self._session = _open(path, _wanted(provider), threads)
        self.provider = _NAMES.get(self._session.get_providers()[0], "cpu")
        if provider == "cuda" and self.provider != "cuda":
            # ONNX Runtime falls back to the CPU with no more than a line in its log.
            raise ModelLoadError(
                f"CUDA was asked for but does not start on this machine, so {path} would run on "
                "the CPU: check the driver and the CUDA libraries, or set FCN_PROVIDER=cpu"
            )
        try:
            metadata = self._session.get_modelmeta().custom_metadata_map
            self.contract = Contract.from_metadata(metadata, str(path))
        except ContractError as error:
            raise ModelLoadError(str(error)) from error
        _check_signature(self._session, self.contract, path)

    @property
    def instances(self) -> Sequence[Run]:
        return (self.run,)

    @property
    def alone(self) -> Run | None:
        return None

    def run(self, batch: UInt8Array) -> UInt8Array:
        """uint8 RGB [N,H,W,3] -> class ids uint8 [N,H,W]. Raises whatever the runtime raises."""
        feeds = {self.contract.input.name: batch}
        (label_maps,) = self._session.run([self.contract.outputs.label_map], feeds)
        return np.asarray(label_maps, np.uint8)

    def warm_up(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Runs one black image of each (height, width).

        The first run of a shape allocates, and on CUDA tunes and loads kernels: better now than on
        somebody's request.

        Raises: ModelLoadError when the network fails or answers in another shape or type.
        """
        for height, width in sizes:
            try:
                label_maps = self.run(np.zeros((1, height, width, 3), np.uint8))
            except Exception as error:
                raise ModelLoadError(
                    f"model {self.contract.model_name} fails on a black {height}x{width} image: "
                    f"{_first_line(error)}"
                ) from error
            if label_maps.shape != (1, height, width):
                raise ModelLoadError(
                    f"model {self.contract.model_name} answers a {height}x{width} image with shape "
                    f"{list(label_maps.shape)}, not [1, {height}, {width}]: export it with its "
                    "upsampling to input pixels"
                )


def _wanted(provider: str) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's provider list, best first."""
    if provider not in PROVIDERS:
        raise ModelLoadError(f"provider {provider!r}: choose one of {', '.join(PROVIDERS)}")
    cpu: tuple[str, dict[str, str]] = (_CPU, {})
    if provider == "cpu":
        return [cpu]
    if _CUDA not in ort.get_available_providers():
        if provider == "cuda":
            raise ModelLoadError(
                "CUDA was asked for but this build of ONNX Runtime has none: install the gpu extra "
                "in place of cpu, or set FCN_PROVIDER=cpu"
            )
        return [cpu]
    # Finds the CUDA libraries that pip installed next to the wheel (#23744).
    ort.preload_dlls()
    cuda = (
        _CUDA,
        {
            # The default, EXHAUSTIVE, searches anew for every new shape: 634 ms against 1.9 ms
            # (PaddlePaddle/PaddleX#5057), with no steady loss.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Growing by doubling keeps memory that variable shapes never use (#14474).
            "arena_extend_strategy": "kSameAsRequested",
        },
    )
    return [cuda, cpu]


def _open(
    path: Path, providers: list[tuple[str, dict[str, str]]], threads: int
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Plans memory for one shape and keeps a plan for each it has seen (#11118).
    options.enable_mem_pattern = False
    # Spinning between runs takes the cores that decode and render need (#27916).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: warnings of its graph passes are not for operators
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exceptions share no base class below Exception
        raise ModelLoadError(
            f"{path} cannot be loaded as an ONNX model: {_first_line(error)}"
        ) from error


def _check_signature(session: ort.InferenceSession, contract: Contract, path: Path) -> None:
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    if set(inputs) != {contract.input.name}:
        raise ModelLoadError(
            f"{path}: the contract's input is {contract.input.name!r} and the graph's are "
            f"{sorted(inputs)}: they must be the same one"
        )
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
    """Sizes given as numbers must be those or unknown (a string or None); letters may be any."""
    fits = len(node.shape) == len(shape) and all(
        isinstance(want, str) or not isinstance(got, int) or got == want
        for got, want in zip(node.shape, shape, strict=True)
    )
    if node.type != dtype or not fits:
        raise ModelLoadError(
            f"{path}: tensor {node.name!r} is {node.type} {node.shape}, and must be {dtype} "
            f"[{', '.join(map(str, shape))}]: export it again"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
