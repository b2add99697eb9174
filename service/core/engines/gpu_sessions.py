"""One ONNX file on GPUs: sessions of ONNX Runtime that run there, or the reason why none does."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import io
import logging
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model.contract import Contract
from service.core.engines import providers
from service.core.engines.binding import BoundSession
from service.core.engines.capture import CAPTURES, Captures
from service.core.engines.gpus import Gpu, GpuOptions, NoGpu, choose, visible_gpus
from service.core.engines.pinned import Cuda
from service.core.engines.providers import CPU, Profile, Provider
from service.core.engines.warm_up import first_line
from service.core.images.prepare import accepted_sizes, ordinary_size
from service.core.types import Instance

UInt8Array = npt.NDArray[np.uint8]

_TENSORRT_LIBRARIES: Final = (
    "libnvinfer.so.10",
    "libnvinfer_plugin.so.10",
    "libnvonnxparser.so.10",
)
_FATAL, _WARNING = 4, 2
_log = logging.getLogger(__name__)


def built_for(provider: str) -> bool:
    """Whether this build of ONNX Runtime has "cuda" or "tensorrt", though they may not start."""
    return any(providers.NAMES.get(name) == provider for name in ort.get_available_providers())


def usable_gpus(options: GpuOptions) -> list[Gpu]:
    """At least one. Raises: NoGpu."""
    return choose(visible_gpus(_cuda_major()), options.devices)


def open_on_gpus(
    path: Path, contract: Contract, provider: str, options: GpuOptions, gpus: Sequence[Gpu]
) -> list[GpuInstance]:
    """`options.instances` for each of `gpus`, neighbours in the list on different ones.

    provider: "cuda" or "tensorrt". Raises: NoGpu when it does not start, or would run elsewhere.
    """
    if provider == "tensorrt":
        options = replace(options, graphs=False)  # they are the CUDA provider's
    if contract.input.sizes is not None:
        # What makes masks of the sizes may be on the CPU, which no graph may use; and where sizes
        # vary hardly a shape comes twice.
        options = replace(options, graphs=False)
    captures = CAPTURES if options.graphs else None
    instances: list[GpuInstance] = []
    with _quiet():
        _preload()
        if provider == "tensorrt":
            _preload_tensorrt()
        for number in range(options.instances):
            for gpu in gpus:
                try:
                    instances.append(_open(path, contract, provider, options, gpu, captures))
                except Exception as error:  # its exceptions share no base class below Exception
                    raise NoGpu(_missing(provider) or first_line(error)) from error
                if number == 0:
                    _log.info("%s on GPU %d, %s", path, gpu.index, gpu.name)
    return instances


class GpuInstance(Instance):
    """One session on one GPU, or two where TensorRT takes some shapes and CUDA the others."""

    def __init__(
        self,
        session: BoundSession,
        other: BoundSession | None = None,
        profile: Profile | None = None,
    ) -> None:
        """other: for the shapes that `profile` does not hold."""
        self._session = session
        self._other = other
        self._profile = profile

    def run(self, batch: UInt8Array) -> UInt8Array:
        return self._for(batch.shape[:3])(batch)

    def stack(self, images: Sequence[UInt8Array]) -> UInt8Array:
        """See `BoundSession.stack`."""
        return self._for((len(images), *images[0].shape[:2])).stack(images)

    def warm_up(self, batch: UInt8Array) -> UInt8Array:
        return self._for(batch.shape[:3]).warm_up(batch)

    def run_with_logits(self, batch: UInt8Array) -> tuple[UInt8Array, npt.NDArray[np.float32]]:
        return self._for(batch.shape[:3]).scored(batch)

    def _for(self, shape: tuple[int, ...]) -> BoundSession:
        if self._other is None or self._profile is None:
            return self._session
        count, height, width = shape
        return self._session if self._profile.holds((count, height, width)) else self._other


def _open(
    path: Path,
    contract: Contract,
    provider: str,
    options: GpuOptions,
    gpu: Gpu,
    captures: Captures | None,
) -> GpuInstance:
    """Raises: NoGpu, or whatever ONNX Runtime raises."""
    place = Cuda(gpu.index, _cuda_major() or 0)
    cuda = providers.cuda(gpu.index, options)
    session = _session(path, [cuda], captures)
    bound = BoundSession(session, contract, place, captures)
    if provider == "cuda":
        return GpuInstance(bound)
    usual = ordinary_size(contract.input)
    sizes = accepted_sizes(options.sizes, contract.input) or ([usual] if usual else [])
    if not sizes:
        raise NoGpu("TensorRT needs a size to build for, and the contract allows none")
    profile = Profile.of(sizes, options.max_batch)
    engines = None
    if options.tensorrt_cache is not None:
        engines = _engine_folder(options.tensorrt_cache, path)
    given = options.provider_options.get("tensorrt", {})
    tensorrt = providers.tensorrt(gpu.index, contract, profile, engines, given)
    inside = BoundSession(_session(path, [tensorrt, cuda], None), contract, place)
    return GpuInstance(inside, bound, profile)


def _session(path: Path, wanted: list[Provider], captures: Captures | None) -> Any:
    """Raises: NoGpu when it runs elsewhere, or whatever ONNX Runtime raises."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # of the CPU, which has nothing but sizes to compute
    options.inter_op_num_threads = 1
    # Plans memory for one shape and keeps a plan for each it has seen (#11118).
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 3
    with captures.none() if captures else contextlib.nullcontext():
        session = ort.InferenceSession(
            str(path),
            options,
            providers=[*wanted, (CPU, {})],
            # Else it prints to stdout, which is for the ready line, and goes on without the GPU;
            # and when a run fails later it makes a session on the CPU, without a word to us.
            enable_fallback=0,
        )
    asked, got = wanted[0][0], session.get_providers()[0]
    if got != asked:  # with no more than a line in its log
        raise NoGpu(f"ONNX Runtime takes {got} instead of {asked}")
    _report(path, session)
    return session


def _report(path: Path, session: Any) -> None:
    """A warning when nodes that should not be on the CPU are."""
    there = [
        str(node.op_type)
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == CPU
        for node in part.get_nodes()
    ]
    _log.debug("%s: %d nodes on the CPU: %s", path, len(there), ", ".join(there))
    if wrong := providers.misplaced(there):
        _log.warning(
            "%s: %d nodes run on the CPU, with copies there and back: %s",
            path,
            sum(wrong.values()),
            ", ".join(f"{count} {operator}" for operator, count in wrong.items()),
        )


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """ONNX Runtime prints what it misses in lines of its own; the reason is in `NoGpu`."""
    ort.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        ort.set_default_logger_severity(_WARNING)


def _preload() -> None:
    """Finds the CUDA libraries that pip installed next to the wheel (#23744)."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:  # stdout is for the ready line
        ort.preload_dlls()
    _log.debug("onnxruntime.preload_dlls: %s", printed.getvalue())


def _missing(provider: str) -> str:
    """The library that the system's loader does not find, in its words; empty if it finds all.

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


def _preload_tensorrt() -> None:
    """Those of the package tensorrt-cu13-libs, if it is installed; others are on the path."""
    found = importlib.util.find_spec("tensorrt_libs")
    for folder in found.submodule_search_locations or () if found else ():
        for name in _TENSORRT_LIBRARIES:
            with contextlib.suppress(OSError):  # ONNX Runtime says what it misses
                ctypes.CDLL(str(Path(folder) / name), ctypes.RTLD_GLOBAL)


def _engine_folder(cache: Path, path: Path) -> Path:
    """One for each file: ONNX Runtime finds an engine again by the names in the graph, and would
    take that of another training of the same network, with its weights.

    Raises: NoGpu when it cannot be written to.
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
        raise NoGpu(
            f"FCN_TENSORRT_CACHE {str(cache)!r} cannot be written to: {error.strerror}"
        ) from error
    return folder


def _cuda_major() -> int | None:
    """13 of a build for CUDA 13.0."""
    version = str(getattr(ort, "cuda_version", None) or "")
    return int(version.split(".")[0]) if version else None
