"""Runs an ONNX file in OpenVINO, on the CPU: the only module that knows it.

A network compiled for any height and width has answered with wrong labels in int8, without a word.
So every size gets a compiled network of its own, made on a thread that stands back while others'
images run, and the sizes used last are kept. Before any of it serves, its labels are compared with
those of ONNX Runtime (`choice`).
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.contract import Contract
from service.core.engines.compile_cache import CompileCache, Size
from service.core.engines.cores import Plan, cpu_name, start_thread
from service.core.engines.warm_up import first_line
from service.core.types import Float32Array, Instance, Network, UInt8Array
from service.errors import ModelLoadError

MAX_SIZES: Final = 16
"""Compiled sizes that each of the two groups of threads keeps."""
MAX_BYTES: Final = 512 * 1024 * 1024
"""Bytes of weights in them, in each group: every size has a copy of them. One always fits."""
MAX_PIXELS: Final = 4_000_000
"""Height times width of all sizes in a group: an inference keeps 70 to 100 bytes a pixel (measured
with the shipped network, 2026-11-30). One always fits."""
SIZES_AT_START: Final = 4
"""Sizes asked for most often before, compiled while the model is loaded."""
COMPILE_NICE: Final = 10
"""How much the compiling thread stands back: twice as much as those that run the network."""


def open_openvino(
    path: Path,
    contract: Contract,
    plan: Plan,
    *,
    bf16: bool = False,
    cache: Path | None = None,
    compiled: Callable[[float], None] = lambda seconds: None,
) -> Network:
    """Opens a file. contract: of this file, which ONNX Runtime has held to it. bf16: compute in
    bfloat16 what the file has in float32. cache: folder for compiled networks, None for none.
    compiled: is told how long each compilation took.

    Raises: ModelLoadError when OpenVINO is not installed or cannot read the file.
    """
    if contract.input.sizes is not None:
        raise ModelLoadError(
            f"{path} wants the sizes of its images, which OpenVINO does not give: set "
            "FCN_ENGINE=onnxruntime, or serve the file it was made of"
        )
    openvino = _package()
    try:
        core = _core()
        model = core.read_model(str(path))
    except Exception as error:
        raise ModelLoadError(
            f"{path} cannot be loaded by OpenVINO: {first_line(error)}: set FCN_ENGINE=onnxruntime"
        ) from error
    precision = "bf16" if bf16 else "f32"
    made_by = (openvino.__version__, cpu_name(), precision)
    kept = CompileCache(cache, path, made_by)
    compiler = _Compiler(core, model, contract.input.name, kept, compiled)
    sizes = max(1, min(MAX_SIZES, MAX_BYTES // max(1, path.stat().st_size)))
    opened = partial(OpenVinoInstance, compiler, contract, sizes, precision)
    groups = [opened(plan.instances, plan.threads)]
    instances = groups * plan.instances
    if plan.alone_threads > plan.threads:
        groups.append(opened(1, plan.alone_threads, full_device=True))
        instances.append(groups[-1])
    return Network(
        path,
        contract,
        "cpu",
        instances,
        engine="openvino",
        precision="bf16" if bf16 else contract.precision,
        prepare=_Preparation(compiler, groups).prepare,
    )


class OpenVinoInstance(Instance):
    """Keeps a compiled network for each of the sizes used last, for `streams` callers at once."""

    def __init__(
        self,
        compiler: _Compiler,
        contract: Contract,
        max_sizes: int,
        precision: str,
        streams: int,
        threads: int,
        *,
        full_device: bool = False,
    ) -> None:
        """threads: of each caller. precision: "f32" or "bf16"."""
        self.full_device = full_device
        self._max_sizes = max_sizes
        self._compiler = compiler
        self._image = contract.input.name
        self._outputs = contract.outputs
        self._options = {
            "PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY",
            "NUM_STREAMS": str(streams),
            "INFERENCE_NUM_THREADS": str(streams * threads),
            # Else it rounds to bf16 by itself where the CPU can.
            "INFERENCE_PRECISION_HINT": precision,
        }
        self._lock = threading.Lock()
        # By size: the network, and its buffers that no caller uses at the moment.
        self._sizes: OrderedDict[Size, Future[tuple[Any, list[Any]]]] = OrderedDict()

    def run(self, batch: UInt8Array) -> UInt8Array:
        """Raises whatever the runtime raises."""
        (label_maps,) = self._run(batch, [self._outputs.label_map])
        return np.asarray(label_maps, np.uint8)

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        """Raises whatever the runtime raises."""
        label_maps, logits = self._run(batch, [self._outputs.label_map, self._outputs.logits])
        return np.asarray(label_maps, np.uint8), np.asarray(logits, np.float32)

    def has(self, size: Size) -> bool:
        """Says whether an image of that height and width runs without being compiled for."""
        compiled = self._sizes.get(size)
        return compiled is not None and compiled.done()

    def compile(self, size: Size) -> tuple[Any, list[Any]]:
        """Returns the network of a size; the first caller makes it, and others wait for that one.

        Raises whatever the runtime raises.
        """
        with self._lock:
            found = self._sizes.get(size)
            makes = found is None
            if found is None:
                found = self._sizes[size] = Future()
                self._drop_oldest()
            self._sizes.move_to_end(size)
        if makes:
            try:
                found.set_result((self._compiler.compile(size, self._options), []))
            except BaseException as error:
                with self._lock:
                    self._sizes.pop(size, None)  # the next caller tries again
                found.set_exception(error)
        return found.result()

    def forget(self) -> None:
        """Frees every compiled size."""
        with self._lock:
            self._sizes.clear()

    def _drop_oldest(self) -> None:
        while len(self._sizes) > 1 and (
            len(self._sizes) > self._max_sizes
            or sum(height * width for height, width in self._sizes) > MAX_PIXELS
        ):
            self._sizes.popitem(last=False)

    def _run(self, batch: UInt8Array, outputs: Sequence[str | None]) -> list[npt.NDArray[Any]]:
        """Runs image by image: together they take as long on a CPU, and each number of images would
        be another network to compile."""
        compiled, idle = self.compile((batch.shape[1], batch.shape[2]))
        # Appending to and popping from a list are atomic.
        request = idle.pop() if idle else compiled.create_infer_request()
        found = []
        for n in range(len(batch)):
            # Copied in and out. With share_inputs the process died of a segmentation fault.
            request.infer({self._image: batch[n : n + 1]}, share_inputs=False)
            found.append([np.array(request.get_tensor(name).data) for name in outputs])
        idle.append(request)
        return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]


class _Compiler:
    """Compiles a model for one size, once for all groups, or finds it in the cache."""

    def __init__(
        self,
        core: Any,
        model: Any,
        image: str,
        cache: CompileCache,
        compiled: Callable[[float], None],
    ) -> None:
        self._core = core
        self._model = model
        self._image = image
        self._lock = threading.Lock()
        self._last: tuple[Size, bytes] | None = None  # for the other group, which comes next
        self._compiled = compiled
        self.cache = cache

    def compile(self, size: Size, options: dict[str, str]) -> Any:
        """Raises whatever the runtime raises."""
        began = time.perf_counter()
        with self._lock:
            try:
                return self._compile(size, options)
            finally:
                self._compiled(time.perf_counter() - began)

    def _compile(self, size: Size, options: dict[str, str]) -> Any:
        if self._last is not None and self._last[0] == size:
            blob: bytes | None = self._last[1]
        else:
            blob = self.cache.load(size)
        if blob is not None:
            self._last = size, blob
            with contextlib.suppress(Exception):  # of another build, say
                return self._core.import_model(blob, "CPU", options)
        model = self._model.clone()
        model.reshape({self._image: [1, *size, 3]})
        compiled = self._core.compile_model(model, "CPU", options)
        with contextlib.suppress(Exception):
            self._last = size, compiled.export_model().getvalue()
            self.cache.save(size, self._last[1])
        return compiled


class _Preparation:
    """Compiles sizes one after the other, on a thread that lives while there are some."""

    def __init__(self, compiler: _Compiler, groups: Sequence[OpenVinoInstance]) -> None:
        self._cache = compiler.cache
        self._groups = groups
        self._lock = threading.Lock()
        self._works = False
        self._waiting: deque[Callable[[], None]] = deque()
        for size in self._cache.often(SIZES_AT_START):
            self._do(partial(self._compile, size, lambda: None))

    def prepare(self, height: int, width: int, then: Callable[[], None]) -> None:
        """Calls `then`: at once when every group has the size, else when they have it."""
        size = height, width
        if self._cache.count(size):
            self._do(self._cache.save_counts)
        if all(group.has(size) for group in self._groups):
            then()
        else:
            self._do(partial(self._compile, size, then))

    def _compile(self, size: Size, then: Callable[[], None]) -> None:
        with contextlib.suppress(Exception):  # whoever runs the size is told
            for group in self._groups:
                group.compile(size)
        then()

    def _do(self, work: Callable[[], None]) -> None:
        with self._lock:
            self._waiting.append(work)
            begins = not self._works
            self._works = True
        if begins:
            start_thread("compile", self._run, nice=COMPILE_NICE)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._works = False
                    return
                work = self._waiting.popleft()
            work()


@functools.cache
def _core() -> Any:
    """Makes OpenVINO's core, once for the life of the process.

    Its CPU plugin gives the thread that wakes it another stack for signal handlers, and takes it
    back on the thread that ends it: on another thread the first is left with a stack that is gone,
    and dies by the next signal. So it never ends. Seen with OpenVINO 2026.4.
    """
    return _package().Core()


def _package() -> Any:
    """Imports OpenVINO. Raises: ModelLoadError when it is missing."""
    # `import openvino` imports its model converter, which imports a package that reports to the
    # makers. Where that is missing the converter makes do with a stub: so it is missing here.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise ModelLoadError(
            "OpenVINO was asked for and is not installed: pip install 'fcn-serve[cpu]', or "
            "set FCN_ENGINE=onnxruntime"
        ) from error
    return openvino
