"""Forward time per network as in the paper's table 1: 500x500, mean of 20 runs, fp32, one image.

    python -m bench.paper_timing [--rounds 20] [--networks vgg16-pad100 ...] [--side-px 500]

The paper's times are of a Tesla K40c, under Caffe: their order is worth comparing, not their size.
Weights are random: the time does not depend on them. The time ends with the class scores at the
pixels; loading and arg max are left out. On CUDA if torch sees it; there each run is waited for.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm import tqdm

from bench import record
from model.build import NetworkSpec, build

CLASSES = 21
"""PASCAL VOC's."""
PAPER_MS = {"alexnet": 50, "vgg16": 210, "googlenet": 59}
"""On a Tesla K40c. Source: arXiv 1411.4038, table 1."""
_WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description="forward time per network, as in table 1")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--side-px", type=int, default=500)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    parser.add_argument("--variant", choices=("32s", "16s", "8s"), default="32s")
    parser.add_argument(
        "--networks",
        nargs="+",
        default=default_networks(),
        metavar="BACKBONE[-PADDING]",
        help="default: every backbone there is, the paper's own padded as there",
    )
    parser.add_argument("--out", type=Path, default=record.RESULTS / "paper-timing.json")
    args = parser.parse_args()
    if min(args.rounds, args.side_px) < 1:
        parser.error("want at least one round, of at least one pixel")
    try:
        for name in args.networks:
            spec_of(name, args.variant)
    except ValueError as error:
        parser.error(str(error))
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [measure(name, args.variant, args.side_px, args.rounds, device)
            for name in args.networks]  # fmt: skip
    print_table(rows)
    record.write(
        args.out,
        {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "classes": CLASSES,
            "rows": rows,
        },
    )


def default_networks() -> list[str]:
    return [f"{name}-pad100" if name in PAPER_MS else name for name in get_args(str)]


def spec_of(network: str, variant: str = "32s") -> NetworkSpec:
    """Of `vgg16`, or `vgg16-pad100`. Raises: ValueError if there is no such network."""
    backbone, _, padding = network.partition("-")
    if backbone not in get_args(str):
        raise ValueError(f"no backbone {backbone!r}: want one of {', '.join(get_args(str))}")
    if padding not in ("", "same", "pad100"):
        raise ValueError(f"no padding {padding!r}: want same or pad100")
    return NetworkSpec(backbone, variant, padding=padding or "same")  # type: ignore[arg-type]


@torch.inference_mode()
def measure(
    name: str, variant: str, side_px: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """One row: times of `rounds` forward passes after two that are not counted, and parameters."""
    torch.manual_seed(0)
    spec = spec_of(name, variant)
    network = build(spec, CLASSES).eval().to(device)
    images = torch.rand(1, 3, side_px, side_px, device=device) * 255
    times = []
    for index in tqdm(range(-_WARM_UP, rounds), spec.architecture, unit="run"):
        _wait(device)
        started = time.perf_counter()
        network(images)
        _wait(device)
        if index >= 0:
            times.append(time.perf_counter() - started)
    return {
        "network": spec.architecture,
        "height": side_px,
        "width": side_px,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "forward": record.summary(times),
        "paper_ms": PAPER_MS.get(spec.backbone) if variant == "32s" else None,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| network | size | parameters | mean | p50 | paper, K40c |\n|---|---|---|---|---|---|")
    for row in rows:
        paper = "-" if row["paper_ms"] is None else f"{row['paper_ms']} ms"
        print(
            f"| {row['network']} | {row['height']}x{row['width']} | {row['parameters']:,} "
            f"| {row['forward']['mean_ms']:.1f} ms | {row['forward']['p50_ms']:.1f} ms | {paper} |"
        )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
