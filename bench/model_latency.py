"""Network latency per image: ONNX Runtime against PyTorch eager, in one run, taking turns.

    python -m bench.model_latency [--rounds 20] [--threads 2] [--networks mobilenet_v1 vgg16]

Weights are random: the time does not depend on them. Both get one uint8 image and give one uint8
label map, so each pays for normalisation, upsampling and arg max.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from bench import record
from model.backbones.vgg16 import VGG16
from model.build import NetworkSpec, build
from model.contract import ClassInfo, Contract, TrainingData
from model.export.export import ServedNetwork, export
from model.fcn import FCN

SIZES = ((360, 480), (375, 500))
CLASSES = 11
_PAUSE_S = 0.1

Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description="ONNX Runtime against PyTorch, per image")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v1", "vgg16"])
    parser.add_argument("--out", type=Path, default=record.RESULTS / "model-latency.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for backbone in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(backbone, Path(folder), args.rounds, args.threads)
    print_table(rows)
    record.write(
        args.out,
        {"threads": args.threads, "rounds": args.rounds, "classes": CLASSES, "rows": rows},
    )


def measure(backbone: str, folder: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    """One row per size; the contenders take turns within each round."""
    network = make_network(backbone)
    session = open_session(network, folder / "model.onnx", threads)
    eager = ServedNetwork(network, logits=False).eval()
    rows = []
    for height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        contenders: dict[str, Run] = {
            "onnxruntime": partial(session.run, ["label_map"], {"image": image}),
            "pytorch": partial(run_eager, eager, image),
        }
        times = take_turns(contenders, rounds)
        row: dict[str, Any] = {"network": f"fcn8s-{backbone}", "height": height, "width": width}
        row |= {name: record.summary(seconds) for name, seconds in times.items()}
        row["pytorch_over_onnxruntime"] = round(
            row["pytorch"]["p50_ms"] / row["onnxruntime"]["p50_ms"], 3
        )
        rows.append(row)
    return rows


def make_network(backbone: str) -> FCN:
    skip_channels = 64 if backbone == "mobilenet_v1" else 0
    torch.manual_seed(0)
    variant = "32s" if backbone == "alexnet" else "8s"
    spec = NetworkSpec(backbone, variant, skip_channels=skip_channels)  # type: ignore[arg-type]
    network = build(spec, CLASSES)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    if isinstance(network.backbone, VGG16) and network.backbone.fc7_channels != 4096:
        raise ValueError("the paper's network has fc6 and fc7 of 4096 channels")
    return network.eval()


def open_session(network: FCN, path: Path, threads: int) -> onnxruntime.InferenceSession:
    export(network, bench_contract(), path)
    return onnxruntime.InferenceSession(
        path, session_options(threads), providers=["CPUExecutionProvider"]
    )


def bench_contract() -> Contract:
    return Contract(
        model_name="bench",
        architecture="bench",
        classes=tuple(ClassInfo(i, f"class{i}", (i, i, i)) for i in range(CLASSES)),
        training_data=TrainingData("none", "none"),
    )


@torch.inference_mode()
def run_eager(network: ServedNetwork, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    labels = network(torch.from_numpy(image))
    return np.asarray(labels)


def take_turns(contenders: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Seconds per call; two rounds first, not counted.

    Each counted call follows a pause and a call that is not counted: the threads of whoever ran
    before go on spinning for a while, and would be charged to the wrong one.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(-2, rounds):
        for name, run in contenders.items():
            time.sleep(_PAUSE_S)
            run()
            started = time.perf_counter()
            run()
            if index >= 0:
                times[name].append(time.perf_counter() - started)
    return times


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """As the server sets them (service/core/engines/onnx_runtime.py)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| network | size | ONNX Runtime p50 | PyTorch p50 | ratio |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['network']} | {row['height']}x{row['width']} "
            f"| {row['onnxruntime']['p50_ms']:.1f} ms | {row['pytorch']['p50_ms']:.1f} ms "
            f"| {row['pytorch_over_onnxruntime']:.2f} |"
        )


if __name__ == "__main__":
    main()
