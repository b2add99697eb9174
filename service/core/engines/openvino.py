"""Runs an ONNX file in OpenVINO, on the CPU: the only module that knows it.

A network compiled for any height and width has answered with wrong labels in int8, without a word.
So every size gets a compiled network of its own, and the sizes used last are kept; and before any
of it serves, its labels are compared with those of ONNX Runtime (`choice`).
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.contract import Contract
from service.core.engines.cores import Plan
from service.core.engines.warm_up import first_line
from service.core.types import Float32Array, Instance, Network, UInt8Array
from service.errors import ModelLoadError

MAX_SIZES: Final = 16
"""Compiled sizes that each of the two groups of threads keeps. A new one costs about 0.2 s."""
MAX_BYTES: Final = 512 * 1024 * 1024
"""Bytes of weights in them, in each group: every size has a copy of them. One always fits."""


def open_openvino(path: Path, contract: Contract, plan: Plan) -> Network:
    """Opens a file. contract: of this file, which ONNX Runtime has held to it.

    Raises: ModelLoadError when OpenVINO is not installed or cannot read the file.
    """
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
            f"{path} cannot be loaded by OpenVINO: {first_line(error)}: set FCN_ENGINE=onnxruntime"
        ) from error
    sizes = max(1, min(MAX_SIZES, MAX_BYTES // max(1, path.stat().st_size)))
    opened = partial(OpenVinoInstance, core, model, contract, sizes)
    instances = [opened(plan.instances, plan.threads)] * plan.instances
    if plan.alone_threads > plan.threads:
        instances.append(opened(1, plan.alone_threads, full_device=True))
    return Network(path, contract, "cpu", instances)


class OpenVinoInstance(Instance):
    """Keeps a compiled network for each of the sizes used last, for `streams` callers at once."""

    def __init__(
        self,
        core: Any,
        model: Any,
        contract: Contract,
        sizes: int,
        streams: int,
        threads: int,
        *,
        full_device: bool = False,
    ) -> None:
        """threads: of each caller."""
        self.full_device = full_device
        self._max_sizes = sizes
        self._model = model
        self._image = contract.input.name
        self._outputs = contract.outputs
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
        # By height and width: the network, and its buffers that no caller uses at the moment.
        self._sizes: OrderedDict[tuple[int, int], tuple[Any, list[Any]]] = OrderedDict()

    def run(self, batch: UInt8Array) -> UInt8Array:
        """Raises whatever the runtime raises."""
        (label_maps,) = self._run(batch, [self._outputs.label_map])
        return np.asarray(label_maps, np.uint8)

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        """Raises whatever the runtime raises."""
        label_maps, logits = self._run(batch, [self._outputs.label_map, self._outputs.logits])
        return np.asarray(label_maps, np.uint8), np.asarray(logits, np.float32)

    def _run(self, batch: UInt8Array, outputs: Sequence[str | None]) -> list[npt.NDArray[Any]]:
        """Runs image by image: together they take as long on a CPU, and each number of images would
        be another network to compile."""
        compiled, idle = self._size(batch.shape[1], batch.shape[2])
        # Appending to and popping from a list are atomic.
        request = idle.pop() if idle else compiled.create_infer_request()
        found = []
        for n in range(len(batch)):
            # Copied in and out. With share_inputs the process died of a segmentation fault.
            request.infer({self._image: batch[n : n + 1]}, share_inputs=False)
            found.append([np.array(request.get_tensor(name).data) for name in outputs])
        idle.append(request)
        return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]

    def _size(self, height: int, width: int) -> tuple[Any, list[Any]]:
        with self._lock:
            found = self._sizes.get((height, width))
            if found is None:
                model = self._model.clone()
                model.reshape({self._image: [1, height, width, 3]})
                found = self._sizes[height, width] = self._compile(model), []
                if len(self._sizes) > self._max_sizes:
                    self._sizes.popitem(last=False)
            self._sizes.move_to_end((height, width))
            return found


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
