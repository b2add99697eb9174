"""The paper's network, FCN-8s VGG16 with fc6 and fc7 of 4096, in 8 bits through `POST /segment`.

    python -m bench.vgg16 [--requests 40] [--folder DIR] [--prepare]

First what this machine can multiply: one large matrix product in fp32, bf16 and 8 bits. Then, for
each file and engine, `fcn serve` on it, and a client that posts a drawn 500x375 JPEG and waits for
the palette PNG. Weights are random (He et al. 2015), for no trained VGG16 comes with this project:
times do not depend on them; how many labels an 8-bit file shares with the fp32 one does, and is
said for these weights only. `--prepare` only writes the files, so that the rest is short.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from bench import record
from bench.model_latency import bench_contract, make_network, session_options
from bench.segment_load import Rest, Server, jpeg
from model.export.export import export
from model.export.fp32_model import load_fp32
from model.export.quantize import Quantizer
from training.datasets.drawn import draw

SIZE = (375, 500)
"""(height, width)"""
TARGET_MS = 175
WINOGRAD = ("fc6", "conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3")
"""Of 512 channels and more: with fewer, sums of the inputs and outputs cost what products save."""
FILES: dict[str, tuple[str, ...]] = {"int8": (), "int8-winograd": WINOGRAD}
ENGINES = ("onnxruntime", "openvino")
GMACS = {"convolutions": 57.3, "fc6": 19.7, "fc7": 3.2}
"""10^9 multiplications and additions at `SIZE`, those with padding included."""
_CALIBRATION, _COMPARISON = range(8), range(100, 108)
"""Seeds of drawn pictures."""
_MATRIX = 2048
_TURN = 8
"""Requests."""


def main() -> None:
    parser = argparse.ArgumentParser(description="FCN-8s VGG16 in 8 bits through /segment")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="keeps the files, or finds them there")
    parser.add_argument("--prepare", action="store_true", help="write the files and stop")
    parser.add_argument("--files", nargs="+", default=list(FILES), choices=FILES)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "vgg16-cpu.json")
    args = parser.parse_args()
    if args.requests < 1:
        parser.error("want at least one request")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        agreement = prepare(folder)
        if args.prepare:
            return
        peaks = {str(threads): matrix_peaks(threads) for threads in (1, 2)}
        rows = measure(folder, list(product(args.files, args.engines)), args.requests)
        for row in rows:
            total_ms = row["client"]["p50_ms"]
            # A file that multiplies less may come out above the peak.
            gmacs = sum(GMACS.values()) / row["infer"]["p50_ms"] * 1e3
            row |= {
                "label_agreement": agreement[row["file"]],
                "within_target": total_ms <= TARGET_MS,
                "gmac_per_s": round(gmacs, 1),
                "of_peak": round(gmacs / max(peaks["2"].values()), 3),
            }
    print_table(rows, peaks)
    record.write(
        args.out,
        {
            "network": "fcn8s-vgg16, 'same', fc6 and fc7 of 4096, random weights",
            "height": SIZE[0],
            "width": SIZE[1],
            "target_ms": TARGET_MS,
            "gmac": GMACS,
            "winograd": WINOGRAD,
            "matrix_peaks_gmac_per_s_by_threads": peaks,
            "rows": rows,
        },
    )


def prepare(folder: Path) -> dict[str, float]:
    """A model repository for each of `FILES`; the share of labels each has of the fp32 file's."""
    found = folder / "agreement.txt"
    if not found.is_file():
        exact = folder / "model.onnx"
        folder.mkdir(parents=True, exist_ok=True)
        export(make_network("vgg16"), bench_contract(), exact)
        wanted = labels(exact)
        lines = []
        for name, layers in FILES.items():
            place = folder / name / "bench" / "1"
            place.mkdir(parents=True, exist_ok=True)
            if not (place / "model.onnx").exists():
                (place / "model.onnx").symlink_to(exact.resolve())
            source = exact
            if layers:
                source = folder / f"{name}.onnx"
                winograd = [f"backbone.{layer}" for layer in layers]
                export(make_network("vgg16"), bench_contract(), source, winograd=winograd)
            write_int8(source, place / "model.int8.onnx")
            equal = [(a == b).mean() for a, b in zip(labels(place / "model.int8.onnx"), wanted,
                                                    strict=True)]  # fmt: skip
            lines.append(f"{name} {np.mean(equal):.5f}")
        found.write_text("\n".join(lines) + "\n")
    return {name: float(share) for name, share in map(str.split, found.read_text().splitlines())}


def write_int8(source: Path, target: Path) -> None:
    """Every layer in 8 bits, calibrated on drawn pictures."""
    model = load_fp32(source)
    quantizer = Quantizer(model, map(picture, _CALIBRATION))
    onnx.save_model(quantizer.quantize(list(model.layers)), str(target))


def labels(path: Path) -> list[npt.NDArray[np.uint8]]:
    """Of the pictures to compare on."""
    session = onnxruntime.InferenceSession(
        path, session_options(2), providers=["CPUExecutionProvider"]
    )
    return [session.run(["label_map"], {"image": picture(s)[None]})[0] for s in _COMPARISON]


def picture(seed: int) -> npt.NDArray[np.uint8]:
    """uint8 RGB [H,W,3]"""
    return draw(*SIZE, np.random.default_rng(seed)).image


def measure(folder: Path, served: list[tuple[str, str]], requests: int) -> list[dict[str, Any]]:
    """A row for each file and engine: one client, one request at a time.

    The servers take turns of a few requests, so that a busy minute of the machine is everybody's;
    the first two of a turn are not counted, for the others had the caches before.
    """
    height, width = SIZE
    body = jpeg(height, width, 0)
    flags = ("--precision=int8", f"--warm-up-sizes={height}x{width}")
    servers: list[Server] = []
    spent: list[dict[str, list[float]]] = [
        {"client": [], "decode": [], "infer": [], "render": []} for _ in served
    ]
    try:
        for name, engine in served:
            servers.append(Server(folder / name, f"--engine={engine}", *flags))
        clients = [Rest(server.url).connect() for server in servers]
        while len(spent[0]["client"]) < requests:
            for segment, found in zip(clients, spent, strict=True):
                for index in range(-2, min(_TURN, requests - len(found["client"]))):
                    started = time.perf_counter()
                    stages = segment(body)
                    stages["client"] = time.perf_counter() - started
                    if index >= 0:
                        for stage, seconds in found.items():
                            seconds.append(stages[stage])
    finally:
        for server in servers:
            server.stop()
    return [
        {"file": name, "engine": engine, **{stage: summary(s) for stage, s in found.items()}}
        for (name, engine), found in zip(served, spent, strict=True)
    ]


def summary(seconds: list[float]) -> dict[str, float]:
    p90 = float(np.percentile(np.asarray(seconds) * 1e3, 90))
    return {**record.summary(seconds), "p90_ms": round(p90, 3)}


def matrix_peaks(threads: int) -> dict[str, float]:
    """10^9 multiplications and additions a second of a product of two square matrices."""
    torch.set_num_threads(threads)
    size = (_MATRIX, _MATRIX)
    left, right = torch.randn(size), torch.randn(size)
    half = left.bfloat16(), right.bfloat16()
    whole = [torch.randint(0, 127, size, dtype=torch.int8) for _ in range(2)]
    integers = onnx_product(threads)
    products: dict[str, Callable[[], object]] = {
        "fp32": lambda: left @ right,
        "bf16": lambda: half[0] @ half[1],
        "int8": lambda: torch._int_mm(*whole),
        "int8_onnxruntime": integers,
    }
    return {name: round(_MATRIX**3 / best(run) / 1e9, 1) for name, run in products.items()}


def onnx_product(threads: int) -> Callable[[], object]:
    """uint8 by int8, as ONNX Runtime multiplies activations by weights."""
    random = np.random.default_rng(0)
    shape = [_MATRIX, _MATRIX]
    weights = random.integers(-127, 128, shape).astype(np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("product", TensorProto.INT32, shape)],
        [numpy_helper.from_array(weights, "right")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
    )
    left = random.integers(0, 255, shape).astype(np.uint8)
    return lambda: session.run(None, {"left": left})


def best(run: Callable[[], object], rounds: int = 6) -> float:
    """Seconds; the first is not counted."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def print_table(rows: list[dict[str, Any]], peaks: dict[str, dict[str, float]]) -> None:
    print("peaks, GMAC/s by threads:", peaks)
    print("| file | engine | total p50 | p90 | decode | infer | render | of the peak | labels |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        times = " | ".join(f"{row[s]['p50_ms']:.1f}" for s in ("decode", "infer", "render"))
        print(
            f"| {row['file']} | {row['engine']} | {row['client']['p50_ms']:.1f} "
            f"| {row['client']['p90_ms']:.1f} | {times} | {row['of_peak']:.2f} "
            f"| {row['label_agreement']:.3%} |"
        )


if __name__ == "__main__":
    main()
