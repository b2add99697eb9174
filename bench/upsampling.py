"""FCN-8s MobileNetV1 with its upsamplings as transposed convolutions, interpolations and phases.

    python -m bench.upsampling [--rounds 30] [--threads 2]

The files give the same labels (each is checked against PyTorch at its export, and against the
first here); only the time differs. `logits_only` leaves out arg max, to see what that costs.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bench import record
from bench.model_latency import (
    SIZES,
    Run,
    bench_contract,
    make_network,
    session_options,
    take_turns,
)
from model.contract import OutputSpec
from model.export.export import export
from model.upsample import Lowering

LOWERINGS: tuple[Lowering, ...] = ("conv_transpose", "interpolate", "phases")


def main() -> None:
    parser = argparse.ArgumentParser(description="three ways to compute the same upsampling")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "upsampling.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), args.rounds, args.threads)
    for row in rows:
        print(row)
    record.write(args.out, {"threads": args.threads, "rows": rows})


def measure(folder: Path, rounds: int, threads: int) -> list[dict[str, Any]]:
    network = make_network("mobilenet_v1")
    contracts = {
        "": bench_contract(),
        "_logits_only": replace(bench_contract(), outputs=OutputSpec(logits="logits")),
    }
    sessions = {}
    for lowering in LOWERINGS:
        for suffix, contract in contracts.items():
            path = folder / f"{lowering}{suffix}.onnx"
            export(network, contract, path, lowering)
            sessions[lowering + suffix] = onnxruntime.InferenceSession(
                path, session_options(threads), providers=["CPUExecutionProvider"]
            )
    rows = []
    for height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        labels = [s.run(["label_map"], {"image": image})[0] for s in sessions.values()]
        contenders: dict[str, Run] = {
            name: partial(
                session.run,
                ["logits" if name.endswith("_logits_only") else "label_map"],
                {"image": image},
            )
            for name, session in sessions.items()
        }
        times = take_turns(contenders, rounds)
        rows.append(
            {
                "height": height,
                "width": width,
                "labels_agree": min(float((labels[0] == other).mean()) for other in labels[1:]),
                **{name: record.summary(seconds) for name, seconds in times.items()},
            }
        )
    return rows


if __name__ == "__main__":
    main()
