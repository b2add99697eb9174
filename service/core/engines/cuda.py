"""Runs an ONNX file on GPUs, through ONNX Runtime's CUDA and TensorRT providers.

It follows their documentation; no card has measured it. Issue numbers: microsoft/onnxruntime.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import io
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from model.contract import Contract
from service.config import SegmenterConfig
from service.core.engines.warm_up import Shape, first_line
from service.core.types import Float32Array, Instance, UInt8Array
from service.errors import ModelLoadError

CPU: Final = "CPUExecutionProvider"
EXECUTION_PROVIDERS: Final = {
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""ONNX Runtime's names by those in settings, metrics and replies."""
INSTANCES: Final = 2
"""Sessions of a model on each GPU by default: while one copies, the other computes."""
MAX_BATCH: Final = 8
"""Images of one inference on a GPU by default."""
MAX_SHAPES: Final = 32
"""Shapes whose buffers a session keeps, the ones used last; more are made again when they come."""
MAX_BUFFER_BYTES: Final = 256 * 1024 * 1024
"""Memory of the device in those buffers. One shape always fits."""
DEVICE: Final = "cuda"
"""ONNX Runtime's name of the memory that buffers are in."""
_DRIVER: Final = "libcuda.so.1"
_TENSORRT_LIBRARIES: Final = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_ENGINE_FOLDER: Final = "trt_engine_cache_path"
# fmt: off
_SHAPE_ARITHMETIC: Final = frozenset({
    "Add", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand",
    "Floor", "Gather", "Identity", "Max", "Min", "Mod", "Mul", "Neg", "Range", "ReduceProd",
    "Reshape", "Shape", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where",
})
# fmt: on
"""Operators that ONNX Runtime leaves on the CPU by intention where they work on sizes: a few
numbers, which never touch an image."""
Providers = list[tuple[str, dict[str, str]]]
_log = logging.getLogger(__name__)


def built_for(provider: str) -> bool:
    """Tells whether this build of ONNX Runtime has "cuda" or "tensorrt"; it may still not start."""
    return EXECUTION_PROVIDERS[provider] in ort.get_available_providers()


def open_instances(
    path: Path, contract: Contract, provider: str, config: SegmenterConfig
) -> list[CudaInstance]:
    """Opens `config.instances` sessions on each GPU, neighbours in the list on different ones.

    provider: "cuda" or "tensorrt". config: its devices are indexes among those this process sees
    (`CUDA_VISIBLE_DEVICES`), which may be slices of one (MIG).

    Raises: ModelLoadError with the end of a sentence, why it does not start or would run elsewhere.
    """
    if not built_for(provider):
        raise ModelLoadError(
            "this build of ONNX Runtime lacks it (install the gpu extra in place of cpu)"
        )
    devices = choose_devices(count_gpus(cuda_major()), config.devices)
    _preload(provider)
    instances = []
    for _ in range(config.instances or INSTANCES):
        for device in devices:
            wanted = provider_options(path, contract, provider, device, config)
            try:
                session = _open(path, wanted)
            except Exception as error:  # its exceptions share no base class below Exception
                raise ModelLoadError(_missing_library(provider) or first_line(error)) from error
            instances.append(CudaInstance(session, contract, device))
    _log.info("%s runs on GPU %s", path, ", ".join(map(str, devices)))
    return instances


class OrtInstance(Instance):
    """Ends a run of ONNX Runtime, which listens between two nodes of the graph.

    Each run has options of its own: whoever ends the one before does not end it.
    """

    _options: Any = None

    def terminate(self) -> None:
        if self._options is not None:
            self._options.terminate = True


class CudaInstance(OrtInstance):
    """Calls one session on one GPU.

    Buffers on the device stay the same for a shape. The calling thread waits for each step; copies
    of one session and the kernels of another overlap, because each has a stream of its own.
    """

    def __init__(self, session: Any, contract: Contract, device: int) -> None:
        self._session = session
        self._contract = contract
        self._device = device
        # By shape: uint8 [N,H,W,3] and [N,H,W] on the device, and their binding.
        self._buffers: OrderedDict[Shape, tuple[Any, Any, Any]] = OrderedDict()

    def run(self, batch: UInt8Array) -> UInt8Array:
        """Raises whatever the runtime raises."""
        images, label_maps, binding = self._buffers_of(batch.shape)
        # Waits until the device has the pixels: the session's stream would not know to.
        images.update_inplace(np.ascontiguousarray(batch))
        # Bound each time: should the graph want its images elsewhere, ONNX Runtime copies them when
        # they are bound, and would not see them change. Where it takes them as they are, it costs
        # nothing.
        image = self._contract.input.name
        binding.bind_ortvalue_input(image, images)
        for name, value in self._contract.feeds(batch).items():
            if name != image:
                binding.bind_cpu_input(name, value)
        self._options = ort.RunOptions()
        self._session.run_with_iobinding(binding, self._options)
        binding.synchronize_outputs()
        return np.array(label_maps.numpy(), np.uint8)

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, Float32Array]:
        """Keeps no buffers: logits take a hundred times the memory, and are asked for seldom."""
        names = [self._contract.outputs.label_map, self._contract.outputs.logits]
        self._options = ort.RunOptions()
        label_maps, logits = self._session.run(names, self._contract.feeds(batch), self._options)
        return np.asarray(label_maps, np.uint8), np.asarray(logits, np.float32)

    def _buffers_of(self, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
        """Returns those of the batches of this shape before, or new ones."""
        key: Shape = (shape[0], shape[1], shape[2])
        if key not in self._buffers:
            room = MAX_BUFFER_BYTES - _n_bytes(key)
            while self._buffers and (
                len(self._buffers) >= MAX_SHAPES or sum(map(_n_bytes, self._buffers)) > room
            ):
                self._buffers.popitem(last=False)
            label_maps = self._allocate([*key])
            binding = self._session.io_binding()
            binding.bind_ortvalue_output(self._contract.outputs.label_map, label_maps)
            self._buffers[key] = (self._allocate([*key, 3]), label_maps, binding)
        self._buffers.move_to_end(key)
        return self._buffers[key]

    def _allocate(self, shape: list[int]) -> Any:
        return ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, DEVICE, self._device)


def _n_bytes(shape: Shape) -> int:
    return 4 * math.prod(shape)  # three of the image, one of the label map


def count_gpus(needed: int | None, load: Callable[[str], Any] = ctypes.CDLL) -> int:
    """Asks the driver's own library, whose answer precedes any CUDA library. At least 1.

    needed: the CUDA version that the driver must know; None for any.

    Raises: ModelLoadError.
    """
    try:
        driver = load(_DRIVER)
    except OSError as error:
        raise ModelLoadError(f"there is no NVIDIA driver ({_DRIVER} cannot be loaded)") from error
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))  # 1000 * major + 10 * minor
    if needed is not None and version.value // 1000 < needed:
        known = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise ModelLoadError(
            f"the NVIDIA driver knows CUDA {known} at most and this build of ONNX Runtime needs "
            f"CUDA {needed}"
        )
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        name = ctypes.c_char_p()  # such as CUDA_ERROR_NO_DEVICE
        driver.cuGetErrorName(status, ctypes.byref(name))
        called = name.value.decode() if name.value else f"error {status}"
        raise ModelLoadError(f"the NVIDIA driver fails with {called}")
    if not count.value:
        raise ModelLoadError("the NVIDIA driver shows no GPU to this process")
    return count.value


def choose_devices(visible: int, wanted: Sequence[int]) -> list[int]:
    """Returns the indexes in `wanted`, or those of all visible GPUs. Raises: ModelLoadError."""
    if wrong := [index for index in wanted if index >= visible]:
        raise ModelLoadError(
            f"FCN_DEVICES names GPU {wrong[0]} and this process sees {visible}, counted from 0"
        )
    return list(wanted) or list(range(visible))


def provider_options(
    path: Path, contract: Contract, provider: str, device: int, config: SegmenterConfig
) -> Providers:
    """Lists the providers of a session, the wanted one first, each with its options.

    Raises: ModelLoadError when TensorRT's engines cannot be kept where the options say.
    """
    usual: Providers = [(EXECUTION_PROVIDERS["cuda"], _cuda_options(device, config)), (CPU, {})]
    if provider == "cuda":
        return usual
    tensorrt = {
        "device_id": str(device),
        # Float32 networks stay as exact as they were trained; rounding them is the exporter's
        # decision, who measures what it costs.
        "trt_fp16_enable": "1" if contract.precision == "fp16" else "0",
        **config.provider_options.get("tensorrt", {}),
    }
    if folder := tensorrt.get(_ENGINE_FOLDER):
        tensorrt[_ENGINE_FOLDER] = str(_engine_folder(Path(folder), path))
    return [(EXECUTION_PROVIDERS["tensorrt"], tensorrt), *usual]


def _cuda_options(device: int, config: SegmenterConfig) -> dict[str, str]:
    """Makes CUDA's options.

    Source of the keys: onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html.
    """
    cuda = {
        "device_id": str(device),
        # The default, EXHAUSTIVE, searches anew for every new shape: 634 ms against 1.9 ms
        # (PaddlePaddle/PaddleX#5057), with no steady loss.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The heuristics choose the fastest algorithm, whatever workspace it takes.
        "cudnn_conv_use_max_workspace": "1",
        # Growing by doubling keeps memory that variable shapes never use (#14474).
        "arena_extend_strategy": "kSameAsRequested",
        # Tensor cores take channels last; otherwise cuDNN turns every tensor around (#22648).
        "prefer_nhwc": "1",
    }
    if config.gpu_mem_limit_bytes is not None:
        # A limit is one session's arena. The kernels and cuDNN take some hundred MB beside it.
        cuda["gpu_mem_limit"] = str(config.gpu_mem_limit_bytes // (config.instances or INSTANCES))
    return {**cuda, **config.provider_options.get("cuda", {})}


def _engine_folder(cache: Path, path: Path) -> Path:
    """Makes one for each file: ONNX Runtime finds an engine again by the names in the graph, and
    would take that of another training of the same network, with its weights.

    Raises: ModelLoadError.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    folder = cache / f"{digest}-{ort.__version__}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ModelLoadError(
            f"{_ENGINE_FOLDER} {str(cache)!r} in FCN_PROVIDER_OPTIONS cannot be written to: "
            f"{error.strerror}"
        ) from error
    return folder


def _open(path: Path, providers: Providers) -> Any:
    """Raises: ModelLoadError when it runs elsewhere, or whatever ONNX Runtime raises."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # of the CPU, which has nothing but sizes to compute
    options.inter_op_num_threads = 1
    # Plans memory for one shape and keeps a plan for each it has seen (#11118).
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 3
    session = ort.InferenceSession(
        str(path),
        options,
        providers=providers,
        # Else it prints to stdout, which is for the ready line, and goes on without the GPU;
        # and when a run fails later it makes a session on the CPU, without a word to us.
        enable_fallback=0,
    )
    wanted, taken = providers[0][0], session.get_providers()[0]
    if taken != wanted:  # with no more than a line in its log
        raise ModelLoadError(f"ONNX Runtime takes {taken} instead of {wanted}")
    _check_placement(path, session)
    return session


def _check_placement(path: Path, session: Any) -> None:
    """Warns of nodes that fell back to the CPU, where each costs a copy there and back."""
    operators = [
        str(node.op_type)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == CPU
        for node in part.get_nodes()
    ]
    if wrong := Counter(name for name in operators if name not in _SHAPE_ARITHMETIC):
        _log.warning(
            "%s: %d nodes run on the CPU, with copies there and back: %s",
            path,
            wrong.total(),
            ", ".join(f"{count} {operator}" for operator, count in sorted(wrong.items())),
        )


def _preload(provider: str) -> None:
    """Finds the CUDA and TensorRT libraries that pip installed next to the wheel (#23744)."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:  # stdout is for the ready line
        ort.preload_dlls()
    _log.debug("onnxruntime.preload_dlls: %s", printed.getvalue())
    if provider == "tensorrt":
        found = importlib.util.find_spec("tensorrt_libs")  # of the package tensorrt-cu13-libs
        for folder in found.submodule_search_locations or () if found else ():
            for name in _TENSORRT_LIBRARIES:
                with contextlib.suppress(OSError):  # `_missing_library` says what is not there
                    ctypes.CDLL(f"{folder}/lib{name}.so.10", ctypes.RTLD_GLOBAL)


def _missing_library(provider: str) -> str:
    """Names the library that the system's loader does not find; empty if it finds all.

    ONNX Runtime says it in its log alone.
    """
    for name in ("cuda", provider):
        library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            # Some symbols come from ONNX Runtime, which loads it in another way.
            if "undefined symbol" not in str(error):
                return first_line(error)
    return ""


def cuda_major() -> int | None:
    """Returns 13 for a build for CUDA 13.0."""
    version = str(getattr(ort, "cuda_version", None) or "")
    return int(version.split(".")[0]) if version else None
