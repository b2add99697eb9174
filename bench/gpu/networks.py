"""Builds and exports the networks of the benchmark, and says how much of each is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from bench import images
from bench.images import Size
from bench.networks import contract, make, spec_of
from model.build import NetworkSpec
from model.export.export import export
from model.export.fp16 import Fp16Converter
from model.export.fp32_model import load_fp32

NAMES = ("vgg16", "mobilenet_v1", "alexnet", "googlenet")
_NARROW = 0.125


@dataclass(frozen=True, slots=True)
class Scale:
    """Says how much of everything is measured: by default for a GPU."""

    networks: Sequence[str] = NAMES
    sizes: Sequence[Size] = ((500, 500), (360, 480))
    batches: Sequence[int] = (1, 2, 4, 8, 16)
    torch_batches: Sequence[int] = (1, 8)
    slot_s: float = 0.15
    rounds: int = 2
    narrow: bool = False
    compiler: str = "inductor"
    served: Sequence[str] = ("vgg16", "mobilenet_v1")
    connections: Sequence[int] = (1, 4, 16, 64)
    closed_s: float = 1.5


QUICK = Scale(
    networks=("mobilenet_v1",), sizes=((40, 48),), batches=(1, 2), torch_batches=(1,), slot_s=0.01,
    rounds=1, narrow=True, compiler="eager", connections=(1, 2), closed_s=0.3,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exported:
    """Names a network's two files."""

    name: str
    fp32: Path

    @property
    def fp16(self) -> Path:
        return self.fp32.with_name("model.fp16.onnx")


def spec(name: str, narrow: bool) -> NetworkSpec:
    found = spec_of(name, "32s" if name == "alexnet" else "8s")
    return replace(found, width=_NARROW) if narrow else found


def prepare(name: str, folder: Path, narrow: bool) -> Exported:
    """Writes a model repository of its own for the network, only where it is missing."""
    repository = folder / ("narrow" if narrow else "whole") / name
    path = repository / name / "1" / "model.onnx"
    made = Exported(name, path)
    if not made.fp16.is_file():
        export(make(spec(name, narrow)), contract(name), path)
        converter = Fp16Converter(load_fp32(path), [images.scene((96, 128))])
        onnx.save_model(converter.convert(), str(made.fp16))
    return made
