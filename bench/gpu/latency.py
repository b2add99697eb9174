"""One network after the other: each size and batch in every precision, taking turns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime

from bench.gpu import networks, sessions
from bench.gpu.networks import Exported, Size
from bench.gpu.report import Budget, Result
from bench.gpu.sessions import Run
from bench.gpu.turns import take_turns

PART = "latency"
_TRIAL_BATCH = 4


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything: that of a GPU, or of a quick run."""

    sizes: tuple[Size, ...] = ((500, 500), (360, 480))
    batches: tuple[int, ...] = (1, 8, 4, 16, 2)
    """In order of interest, should time run out."""
    torch_batches: tuple[int, ...] = (1, 8)
    slot_s: float = 0.15
    rounds: int = 2
    narrow: bool = False
    matrix_side: int = 8192
    matrix_s: float = 1.0
    connections: tuple[int, ...] = (1, 4, 16, 64)
    closed_s: float = 1.5
    open_s: float = 4.0
    warm_s: float = 0.5

    def quick(self) -> Scale:
        return replace(
            self, sizes=((40, 48),), batches=(1, 2), torch_batches=(1,), slot_s=0.01, rounds=1,
            narrow=True, matrix_side=128, matrix_s=0.02, connections=(1, 2), closed_s=0.3,
            open_s=0.4, warm_s=0.1,
        )  # fmt: skip


def batch_of(count: int, size: Size) -> sessions.UInt8Array:
    """uint8 RGB [N,H,W,3]."""
    return np.stack([networks.picture(size, seed) for seed in range(count)])


def measure(
    exported: list[Exported],
    provider: str,
    scale: Scale,
    peaks: dict[str, float],
    result: Result,
    budget: Budget,
) -> None:
    """Rows of `PART`; what there was no time for is named in `not_reached`."""
    missing: list[str] = []
    for index, network in enumerate(exported):
        own = budget.share(len(exported) - index)
        missing += _measure_one(network, provider, scale, peaks, result, own)
    result.set(PART, not_reached=missing)


def _measure_one(
    network: Exported,
    provider: str,
    scale: Scale,
    peaks: dict[str, float],
    result: Result,
    budget: Budget,
) -> list[str]:
    keys: list[dict[str, Any]] = [
        {"network": network.name, "size": list(size), "batch": batch}
        for batch in scale.batches
        for size in scale.sizes
    ]
    keys = [key for key in keys if not result.has(PART, key)]
    if not keys or not budget.left_s:
        return [named(key) for key in keys]
    opened, layouts = open_all(network, provider, scale)
    counts = {size: networks.flops(network.fp32, size) for size in scale.sizes}
    missing = []
    for key in keys:
        if not budget.left_s:
            missing.append(named(key))
            continue
        size, batch = (key["size"][0], key["size"][1]), key["batch"]
        images = batch_of(batch, size)
        contenders: dict[str, Run] = {
            precision: sessions.on_device(session, images, provider)
            for precision, session in opened.items()
        }
        contenders["fp16, from host"] = sessions.from_host(opened["fp16"], images)
        measured = take_turns(contenders, batch, scale.slot_s, scale.rounds)
        for name, got in measured.items():
            peak = peaks.get(name)
            if peak:
                got["of_peak"] = round(counts[size] * got["images_per_s"] / peak, 4)
        result.add(PART, {
            **key, "gflop_per_image": round(counts[size] / 1e9, 3), "layouts": layouts,
            "contenders": measured,
        })  # fmt: skip
    return missing


def open_all(
    network: Exported, provider: str, scale: Scale
) -> tuple[dict[str, onnxruntime.InferenceSession], dict[str, Any]]:
    """A session for each precision, in the faster layout, and what the trial of layouts gave.

    On a CPU "fp16" is the fp16 file, computed in fp32.
    """
    opened = {"fp32": sessions.open_session(network.fp32, provider)}
    layouts: dict[str, Any] = {}
    if provider == "cpu":
        opened["fp16"] = sessions.open_session(network.fp16, provider)
        return opened, layouts
    images = batch_of(_TRIAL_BATCH, scale.sizes[0])
    for precision, path in (("tf32", network.fp32), ("fp16", network.fp16)):
        both = {
            layout: sessions.open_session(path, provider, tf32=True, nhwc=layout == "NHWC")
            for layout in ("NCHW", "NHWC")
        }
        tried = take_turns(
            {name: sessions.on_device(each, images, provider) for name, each in both.items()},
            _TRIAL_BATCH, scale.slot_s, 1,
        )  # fmt: skip
        speeds = {name: got["images_per_s"] for name, got in tried.items()}
        layouts[precision] = {"images_per_s": speeds, "taken": max(speeds, key=lambda n: speeds[n])}
        opened[precision] = both[layouts[precision]["taken"]]
    return opened, layouts


def named(key: dict[str, Any]) -> str:
    return f"{key['network']} {key['size'][0]}x{key['size'][1]} batch {key['batch']}"
