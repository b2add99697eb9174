"""What ONNX Runtime's GPU providers are told. Issue numbers are those of microsoft/onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from model.contract import Contract
from service.core.engines.gpus import GpuOptions

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
NAMES: Final = {CPU: "cpu", CUDA: "cuda", TENSORRT: "tensorrt"}
"""As settings, metrics and replies call them."""
PROVIDERS: Final = ("auto", *NAMES.values())

Provider = tuple[str, dict[str, str]]
Shape = tuple[int, int, int]
"""Of a batch: N, height, width."""

_SHAPE_ARITHMETIC: Final = frozenset(
    {
        "Add",
        "Cast",
        "Ceil",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Expand",
        "Floor",
        "Gather",
        "Identity",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Range",
        "ReduceProd",
        "Reshape",
        "Shape",
        "Size",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "Where",
    }
)
"""Operators that ONNX Runtime leaves on the CPU by intention where they work on sizes: a few
numbers, which never touch a picture."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The shapes that a TensorRT engine is built for: batches up to `max_batch`, and every height
    and width between the two sizes. It is tuned for full batches of `usual`."""

    smallest: tuple[int, int]
    usual: tuple[int, int]
    largest: tuple[int, int]
    max_batch: int

    @classmethod
    def of(cls, sizes: Sequence[tuple[int, int]], max_batch: int) -> Profile:
        """sizes: at least one; the first is the usual one."""
        heights, widths = zip(*sizes, strict=True)
        return cls((min(heights), min(widths)), sizes[0], (max(heights), max(widths)), max_batch)

    def holds(self, shape: Shape) -> bool:
        count, height, width = shape
        return (
            count <= self.max_batch
            and self.smallest[0] <= height <= self.largest[0]
            and self.smallest[1] <= width <= self.largest[1]
        )


def cuda(device: int, options: GpuOptions) -> Provider:
    """Source of the keys: onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html."""
    told = {
        "device_id": str(device),
        # The default, EXHAUSTIVE, searches anew for every new shape: 634 ms against 1.9 ms
        # (PaddlePaddle/PaddleX#5057), with no steady loss.
        "cudnn_conv_algo_search": "HEURISTIC",
        # The heuristics choose the fastest algorithm, whatever workspace it takes.
        "cudnn_conv_use_max_workspace": "1",
        # Growing by doubling keeps memory that variable shapes never use (#14474).
        "arena_extend_strategy": "kSameAsRequested",
        # Tensor cores take channels last; otherwise cuDNN turns every tensor around (#22648).
        "prefer_nhwc": _flag(options.nhwc),
        # Of float32 networks; those in float16 have no such products.
        "use_tf32": _flag(options.tf32),
    }
    if options.memory_limit_bytes is not None:
        # A limit is one session's arena. The kernels and cuDNN take some hundred MB beside it.
        told["gpu_mem_limit"] = str(options.memory_limit_bytes // options.instances)
    if options.graphs:
        told["enable_cuda_graph"] = "1"
    return CUDA, told | dict(options.provider_options.get("cuda", {}))


def tensorrt(
    device: int,
    contract: Contract,
    profile: Profile,
    engines: Path | None,
    given: Mapping[str, str] = MappingProxyType({}),
) -> Provider:
    """engines: folder for the engines of this file and no other; the timings go beside it. given:
    options over these.

    Source of the keys: onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html.

    Without explicit profiles an engine is built again, for minutes, whenever a request brings a
    size that none had before (#13851).
    """
    told = {
        "device_id": str(device),
        # Float32 networks stay as exact as they were trained; rounding them is the exporter's
        # decision, who measures what it costs.
        "trt_fp16_enable": _flag(contract.precision == "fp16"),
    }
    least, usual, most = (
        f"{contract.input.name}:{count}x{height}x{width}x3"
        + (f",{contract.input.sizes}:{count}x2" if contract.input.sizes else "")
        for count, (height, width) in (
            (1, profile.smallest),
            (profile.max_batch, profile.usual),
            (profile.max_batch, profile.largest),
        )
    )
    told |= {
        "trt_profile_min_shapes": least,
        "trt_profile_opt_shapes": usual,
        "trt_profile_max_shapes": most,
    }
    if engines is not None:
        told |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(engines),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(engines.parent),
        }
    return TENSORRT, told | dict(given)


def misplaced(nodes: Sequence[str]) -> dict[str, int]:
    """How many of each operator are on the CPU and should not be. nodes: operators there."""
    wrong = [operator for operator in nodes if operator not in _SHAPE_ARITHMETIC]
    return {operator: wrong.count(operator) for operator in sorted(set(wrong))}


def _flag(on: bool) -> str:
    return "1" if on else "0"
