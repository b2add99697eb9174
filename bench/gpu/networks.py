"""The networks of the benchmark: built, exported, halved, counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from math import prod
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper

from model.backbones.alexnet import AlexNet
from model.backbones.base import Backbone
from model.backbones.googlenet import GoogLeNet
from model.backbones.mobilenet_v1 import MobileNetV1
from model.backbones.vgg16 import VGG16
from model.contract import ClassInfo, Contract, TrainingData
from model.export.export import export
from model.export.fp16 import Fp16Converter
from model.export.fp32_model import load_fp32
from model.fcn import FCN, Variant

CLASSES = 21
"""PASCAL VOC's, as in the paper."""

Size = tuple[int, int]

_BACKBONES: dict[str, tuple[Callable[[], Backbone], Callable[[], Backbone], Variant, int]] = {
    "fcn8s-vgg16": (VGG16, lambda: VGG16(fc_channels=8, width=1 / 32), "8s", 0),
    "fcn8s-mobilenet_v1": (MobileNetV1, lambda: MobileNetV1(8, width=0.125), "8s", 64),
    "fcn32s-alexnet": (
        AlexNet, lambda: AlexNet(fc_channels=8, width=1 / 32), "32s", 0,
    ),
    "fcn8s-googlenet": (GoogLeNet, lambda: GoogLeNet(width=0.0625), "8s", 0),
}  # fmt: skip
"""Whole, narrow for a quick run, variant, channels of the skips."""

NAMES = tuple(_BACKBONES)


@dataclass(frozen=True, slots=True)
class Exported:
    """`repository`: a model repository that holds this one, as `<name>/1/model.onnx`."""

    name: str
    repository: Path
    half_layers: int
    float_layers: int
    """Of the fp16 file's layers, those on fp16 numbers, and those left in fp32."""

    @property
    def fp32(self) -> Path:
        return self.repository / self.name / "1" / "model.onnx"

    @property
    def fp16(self) -> Path:
        return self.fp32.with_name("model.fp16.onnx")


def make(name: str, narrow: bool) -> FCN:
    """Random weights, those of the score layers too, which would start at zero."""
    whole, small, variant, skip_channels = _BACKBONES[name]
    torch.manual_seed(0)
    backbone = small() if narrow else whole()
    skips = min(skip_channels, 4) if narrow else skip_channels
    network = FCN(backbone, CLASSES, variant, skip_channels=skips)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    return network.eval()


def prepare(name: str, folder: Path, narrow: bool) -> Exported:
    """Both files, made anew only where they are missing."""
    repository = folder / ("narrow" if narrow else "whole") / name
    path = repository / name / "1" / "model.onnx"
    counts = path.with_name("layers.txt")
    if not counts.is_file():
        contract = Contract(
            model_name=name,
            architecture=name,
            classes=tuple(ClassInfo(i, f"class{i}", (i, 255 - i, i)) for i in range(CLASSES)),
            training_data=TrainingData("none: random weights", "none"),
        )
        export(make(name, narrow), contract, path)
        model = load_fp32(path)
        converter = Fp16Converter(model, [picture((96, 128))])
        onnx.save_model(converter.convert(), str(path.with_name("model.fp16.onnx")))
        half = len(converter.fp16_layers())
        counts.write_text(f"{half} {len(model.layers) - half}")
    half, rest = map(int, counts.read_text().split())
    return Exported(name, repository, half, rest)


def prepare_all(names: Sequence[str], folder: Path, narrow: bool) -> list[Exported]:
    """Side by side where there are cores for it: an export keeps about four busy."""
    workers = min(len(names), len(os.sched_getaffinity(0)) // 4)
    if workers < 2:
        return [prepare(name, folder, narrow) for name in names]
    # Spawned: a process that has touched CUDA must not be forked.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(prepare, names, repeat(folder), repeat(narrow)))


def picture(size: Size, seed: int = 0) -> npt.NDArray[np.uint8]:
    """uint8 RGB [H,W,3]: coarse shapes with some grain."""
    random = np.random.default_rng(seed)
    height, width = size
    coarse = random.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    large: npt.NDArray[np.uint8] = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    grained: npt.NDArray[np.uint8] = large // 8 * 7 + random.integers(0, 32, large.shape, np.uint8)
    return grained


def flops(path: Path, size: Size) -> int:
    """Multiplications and additions of the convolutions for one image, from the graph's shapes."""
    import onnxruntime

    proto = onnx.load(str(path))
    graph = proto.graph
    convolutions = [n for n in graph.node if n.op_type in ("Conv", "ConvTranspose")]
    names: list[str] = []
    for node in convolutions:
        # Of a transposed convolution it is the input whose every cell meets the whole kernel.
        place = node.output[0] if node.op_type == "Conv" else node.input[0]
        for tensor in (place, node.input[1]):
            names.append(f"shape_{len(names)}")
            graph.node.append(helper.make_node("Shape", [tensor], [names[-1]]))
            graph.output.append(
                helper.make_tensor_value_info(names[-1], onnx.TensorProto.INT64, [4])
            )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    shapes = [[int(n) for n in s] for s in session.run(names, {"image": picture(size)[None]})]
    # Weights are [O,I/groups,h,w] and [I,O/groups,h,w]: all but the first axis meet each cell.
    return sum(
        2 * prod(cells) * prod(weight[1:])
        for cells, weight in zip(shapes[::2], shapes[1::2], strict=True)
    )
