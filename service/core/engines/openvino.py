"""Runs an ONNX file in OpenVINO, on the CPU: the only module that knows it.

A network compiled for any height and width has answered with wrong labels in int8, without a word.
So every size gets a compiled network of its own, and the sizes used last are kept; and before any
of it serves, its labels are compared with those of ONNX Runtime (`choice`).
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.contract import Contract
from service.core.engines.cores import Plan
from service.core.engines.warm_up import first_line, warm_up
from service.core.types import Instance
from service.errors import ModelLoadError

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

MAX_SIZES: Final = 16
"""Compiled sizes that each of the two groups of threads keeps. A new one costs about 0.2 s."""
MAX_BYTES: Final = 512 * 1024 * 1024
"""Bytes of weights in them, in each group: every size has a copy of them. One always fits."""


class OpenVinoNetwork:
    """Holds a network that is ready to run; see `Network`."""

    provider = "cpu"

    def __init__(self, path: Path, contract: Contract, plan: Plan) -> None:
        """contract: of this file, which ONNX Runtime has held to it.

        Raises: ModelLoadError when OpenVINO is not installed or cannot read the file.
        """
        self.path = path
        self.contract = contract
        if contract.input.sizes is not None:
            raise ModelLoadError(
                f"{path} wants the sizes of its images, which OpenVINO does not give: set "
                "FCN_ENGINE=onnxruntime, or serve the file it was made of"
            )
        core = _core()
        try:
            model = core.read_model(str(path))
        except Exception as error:
            raise ModelLoadError(
                f"{path} cannot be loaded by OpenVINO: {first_line(error)}: set "
                "FCN_ENGINE=onnxruntime"
            ) from error
        sizes = max(1, min(MAX_SIZES, MAX_BYTES // max(1, path.stat().st_size)))
        self._shared = _Compiled(core, model, contract, sizes, plan.instances, plan.threads)
        self.instances = [OpenVinoInstance(self._shared) for _ in range(plan.instances)]
        if plan.alone_threads > plan.threads:
            lone = _Compiled(core, model, contract, sizes, 1, plan.alone_threads)
            self.instances.append(OpenVinoInstance(lone, full_device=True))

    def warm_up(self, sizes: Sequence[tuple[int, int]]) -> None:
        """See `warm_up.warm_up`. Raises: ModelLoadError."""
        warm_up(self, sizes)


class OpenVinoInstance(Instance):
    """Calls one stream of a compiled network."""

    def __init__(self, compiled: _Compiled, *, full_device: bool = False) -> None:
        self._compiled = compiled
        self.full_device = full_device

    def run(self, batch: UInt8Array) -> UInt8Array:
        """Raises whatever the runtime raises."""
        return self._compiled.run(batch)

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        """Raises whatever the runtime raises."""
        return self._compiled.run_with_logits(batch)


class _Compiled:
    """Keeps a network for each of the sizes used last, for `streams` callers of `threads` each."""

    def __init__(
        self, core: Any, model: Any, contract: Contract, sizes: int, streams: int, threads: int
    ) -> None:
        self._max_sizes = sizes
        self._model = model
        self._contract = contract
        self._compile = partial(
            core.compile_model,
            device_name="CPU",
            config={
                "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY",
                "NUM_STREAMS": str(streams),
                "INFERENCE_NUM_THREADS": str(streams * threads),
                # Else it rounds to bf16 by itself where the CPU can.
                "INFERENCE_PRECISION_HINT": "f32",
            },
        )
        self._lock = threading.Lock()
        self._sizes: OrderedDict[tuple[int, int], _Size] = OrderedDict()

    def run(self, batch: UInt8Array) -> UInt8Array:
        """Labels uint8 RGB [N,H,W,3] -> class ids uint8 [N,H,W].

        Image by image: together they take as long on a CPU, and each number of images would be
        another network to compile.
        """
        size = self._size(batch.shape[1], batch.shape[2])
        return np.concatenate([size.run(batch[i : i + 1]) for i in range(len(batch))])

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        """Returns class ids uint8 [N,H,W] and logits float32 [N,C,H,W]."""
        size = self._size(batch.shape[1], batch.shape[2])
        label_maps, logits = zip(
            *(size.run_with_logits(batch[i : i + 1]) for i in range(len(batch))), strict=True
        )
        return np.concatenate(label_maps), np.concatenate(logits)

    def _size(self, height: int, width: int) -> _Size:
        with self._lock:
            found = self._sizes.get((height, width))
            if found is None:
                model = self._model.clone()
                model.reshape({self._contract.input.name: [1, height, width, 3]})
                found = _Size(self._compile(model), self._contract)
                self._sizes[height, width] = found
                if len(self._sizes) > self._max_sizes:
                    self._sizes.popitem(last=False)
            self._sizes.move_to_end((height, width))
            return found


class _Size:
    """Holds the network for one size, and the buffers that no caller uses at the moment."""

    def __init__(self, compiled: Any, contract: Contract) -> None:
        self._compiled = compiled
        self._input = contract.input.name
        self._outputs = contract.outputs
        self._idle: list[Any] = []

    def run(self, image: UInt8Array) -> UInt8Array:
        """Labels uint8 RGB [1,H,W,3] -> uint8 [1,H,W]."""
        with self._answered(image) as request:
            return np.array(request.get_tensor(self._outputs.label_map).data, np.uint8)

    def run_with_logits(self, image: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        """Returns class ids uint8 [1,H,W] and logits float32 [1,C,H,W]."""
        with self._answered(image) as request:
            label_map = np.array(request.get_tensor(self._outputs.label_map).data, np.uint8)
            return label_map, np.array(request.get_tensor(self._outputs.logits).data, np.float32)

    @contextmanager
    def _answered(self, image: UInt8Array) -> Iterator[Any]:
        # Appending to and popping from a list are atomic.
        request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        # Copied in and out. With share_inputs the process died of a segmentation fault.
        request.infer({self._input: image}, share_inputs=False)
        yield request
        self._idle.append(request)


def _core() -> Any:
    """Imports the package. Raises: ModelLoadError when it is missing."""
    # `import openvino` imports its model converter, which imports a package that reports to the
    # makers. Where that is missing the converter makes do with a stub: so it is missing here.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise ModelLoadError(
            "OpenVINO was asked for and is not installed: pip install 'fcn-serve[openvino]', or "
            "set FCN_ENGINE=onnxruntime"
        ) from error
    return openvino.Core()
