"""FCN-8s MobileNetV1 with its upsamplings as transposed convolutions and as interpolations.

    python -m bench.upsampling [--rounds 30] [--threads 2]

Both files give the same labels (each is checked against PyTorch at its export, and against the
other here); only the time differs. `logits_only` leaves out arg max, to see what that costs.
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
from model.export import export
from model.upsample import Lowering

LOWERINGS: tuple[Lowering, ...] = ("conv_transpose", "interpolate")


def main() -> None:
    parser = argparse.ArgumentParser(description="two ways to compute the same upsampling")
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
    contract = replace(bench_contract(), outputs=OutputSpec(logits="logits"))
    options = session_options(threads)
    sessions = {}
    for lowering in LOWERINGS:
        export(network, contract, folder / f"{lowering}.onnx", lowering)
        sessions[lowering] = onnxruntime.InferenceSession(
            folder / f"{lowering}.onnx", options, providers=["CPUExecutionProvider"]
        )
    rows = []
    for height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
        labels = [s.run(["label_map"], {"image": image})[0] for s in sessions.values()]
        contenders: dict[str, Run] = {}
        for lowering, session in sessions.items():
            contenders[lowering] = partial(session.run, ["label_map"], {"image": image})
            contenders[f"{lowering}_logits_only"] = partial(
                session.run, ["logits"], {"image": image}
            )
        times = take_turns(contenders, rounds)
        rows.append(
            {
                "height": height,
                "width": width,
                "labels_agree": float((labels[0] == labels[1]).mean()),
                **{name: record.summary(seconds) for name, seconds in times.items()},
            }
        )
    return rows


if __name__ == "__main__":
    main()
