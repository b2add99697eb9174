"""Padding by 100 pixels: the whole canvas against one that leaves out what is alike.

    python -m bench.border [--rounds 7] [--folder DIR] [--prepare]

FCN-8s VGG16 as its authors pad it, random weights, one 500x375 picture, two threads, fp32 and 8
bits, the two files taking turns. Their labels are compared too. `--prepare` only writes the files.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import record
from bench.model_latency import Run, bench_contract, take_turns
from bench.vgg16 import SIZE, picture, write_int8
from model.build import NetworkSpec, build
from model.export.export import export
from service.core.engines.cores import Plan
from service.core.engines.onnx_runtime import Session
from service.core.engines.openvino import OpenVinoNetwork

CLASSES = 11
FILES = {"whole": False, "trimmed": True}


def main() -> None:
    parser = argparse.ArgumentParser(description="the paper's padding with and without copies")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="keeps the files, or finds them there")
    parser.add_argument("--prepare", action="store_true", help="write the files and stop")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "border.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        prepare(folder)
        if args.prepare:
            return
        rows = [
            measure(folder, precision, engine, args.rounds)
            for precision, engine in (
                ("fp32", "onnxruntime"), ("int8", "onnxruntime"), ("int8", "openvino"),
            )
        ]  # fmt: skip
    for row in rows:
        print(row)
    record.write(args.out, {"height": SIZE[0], "width": SIZE[1], "threads": 2, "rows": rows})


def prepare(folder: Path) -> None:
    torch.manual_seed(0)
    network = build(NetworkSpec("vgg16", padding="pad100"), CLASSES).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    for name, trim in FILES.items():
        exact = folder / name / "fp32.onnx"
        if not exact.with_name("int8.onnx").is_file():
            export(network, bench_contract(), exact, trim=trim)
            write_int8(exact, exact.with_name("int8.onnx"))


def measure(folder: Path, precision: str, engine: str, rounds: int) -> dict[str, Any]:
    runs = {name: opened(folder / name / f"{precision}.onnx", engine) for name in FILES}
    image = picture(0)[None]
    contenders: dict[str, Run] = {name: partial(run, image) for name, run in runs.items()}
    times = {name: record.summary(found) for name, found in take_turns(contenders, rounds).items()}
    whole, trimmed = (run(image) for run in runs.values())
    return {
        "precision": precision,
        "engine": engine,
        **times,
        "trimmed_over_whole": round(times["trimmed"]["p50_ms"] / times["whole"]["p50_ms"], 3),
        "equal_labels": float(np.mean(whole == trimmed)),
    }


def opened(path: Path, engine: str) -> Any:
    session = Session(path, provider="cpu", threads=2)
    if engine == "onnxruntime":
        return session.run
    return OpenVinoNetwork(path, session.contract, Plan(1, 2, 0)).instances[0]


if __name__ == "__main__":
    main()
