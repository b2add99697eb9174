from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from model.contract import InputSpec
from service.core.engines.gpus import GpuOptions
from service.core.engines.providers import Profile, cuda, misplaced, tensorrt
from tests import tiny_models

PROFILE = Profile.of([(480, 360), (500, 375), (320, 500)], 8)


def test_cuda_is_told_what_variable_shapes_need() -> None:
    name, told = cuda(1, GpuOptions())
    assert name == "CUDAExecutionProvider"
    assert told == {
        "device_id": "1",
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "prefer_nhwc": "1",
        "use_tf32": "1",
    }


def test_cuda_options_follow_the_settings() -> None:
    options = GpuOptions(
        instances=4, memory_limit_bytes=1 << 32, tf32=False, nhwc=False, graphs=True
    )
    told = cuda(0, options)[1]
    assert told["gpu_mem_limit"] == str(1 << 30)  # all sessions share it
    assert (told["use_tf32"], told["prefer_nhwc"], told["enable_cuda_graph"]) == ("0", "0", "1")


@pytest.mark.parametrize(("precision", "fp16"), [("fp32", "0"), ("fp16", "1"), ("int8", "0")])
def test_tensorrt_rounds_only_what_was_exported_so(precision: str, fp16: str) -> None:
    contract = dataclasses.replace(tiny_models.contract(), precision=precision)
    assert tensorrt(0, contract, PROFILE, None)[1]["trt_fp16_enable"] == fp16


def test_tensorrt_is_told_the_range_of_shapes_and_where_engines_are() -> None:
    name, told = tensorrt(2, tiny_models.contract(), PROFILE, Path("/cache/abc"))
    assert name == "TensorrtExecutionProvider"
    assert told == {
        "device_id": "2",
        "trt_fp16_enable": "0",
        "trt_profile_min_shapes": "image:1x320x360x3",
        "trt_profile_opt_shapes": "image:8x480x360x3",
        "trt_profile_max_shapes": "image:8x500x500x3",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/cache/abc",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/cache",
    }
    assert "trt_engine_cache_enable" not in tensorrt(2, tiny_models.contract(), PROFILE, None)[1]


@pytest.mark.parametrize(
    ("shape", "held"),
    [
        ((1, 320, 360), True),
        ((8, 500, 500), True),
        ((3, 400, 400), True),
        ((9, 400, 400), False),
        ((1, 319, 400), False),
        ((1, 400, 359), False),
        ((1, 501, 400), False),
        ((1, 400, 501), False),
    ],
)
def test_a_profile_holds_what_lies_between_its_sizes(
    shape: tuple[int, int, int], held: bool
) -> None:
    assert PROFILE.holds(shape) is held


def test_arithmetic_of_sizes_belongs_on_the_cpu_and_nothing_else() -> None:
    assert misplaced(["Shape", "Gather", "Mul", "Reshape"]) == {}
    assert misplaced(["Shape", "Resize", "Conv", "Resize"]) == {"Conv": 1, "Resize": 2}


def test_tensorrt_is_told_the_range_of_sizes_too_where_a_network_takes_them() -> None:
    spec = InputSpec(stride=1, sizes="image_sizes")
    contract = dataclasses.replace(tiny_models.contract(), input=spec, format_version=2)
    told = tensorrt(0, contract, PROFILE, None)[1]
    assert told["trt_profile_min_shapes"] == "image:1x320x360x3,image_sizes:1x2"
    assert told["trt_profile_max_shapes"] == "image:8x500x500x3,image_sizes:8x2"
