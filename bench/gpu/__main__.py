"""`python -m bench.gpu`, see the package."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import record
from bench.gpu import device, eager, end_to_end, kernels, latency, networks, sessions
from bench.gpu.latency import Scale
from bench.gpu.networks import Exported
from bench.gpu.report import Budget, Result, tables

SHARES = {"peak": 1, "latency": 8, "end_to_end": 7, "torch": 6, "kernels": 1}
"""Parts in their order, and how much of the time each may take of those still to come."""
WORK = Path("build/gpu-bench")


def main(words: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(words)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sessions.preload(args.provider)
    scale = Scale().quick() if args.quick else Scale()
    head = {
        **device.describe(args.provider), "quick": args.quick, "minutes": args.minutes,
        "weights": "random", "classes": networks.CLASSES,
    }  # fmt: skip
    slug = re.sub(r"[^a-z0-9]+", "-", head["device_name"].lower()).strip("-")
    kind = "-quick" if args.quick else ""
    result = Result(args.out or record.RESULTS / f"gpu-{slug}{kind}.json", head, args.fresh)
    budget = Budget.of(60 * args.minutes)
    args.work.mkdir(parents=True, exist_ok=True)
    exported = _prepare(args, scale, result)
    parts = _parts(args, scale, result, exported)
    wanted = [part for part in SHARES if part in (args.only or SHARES)]
    for index, part in enumerate(wanted):
        still = sum(SHARES[name] for name in wanted[index:])
        own = Budget.of(budget.left_s * SHARES[part] / still)
        _attempt(part, lambda part=part, own=own: parts[part](own), result)  # type: ignore[misc]
    result.set("clocks", after=device.clocks())
    print("\n".join(tables(result.parts)))
    print(result.path)
    failed = [part for part in wanted if "failed" in result.parts.get(part, {})]
    return 1 if failed else 0


def _parts(
    args: argparse.Namespace, scale: Scale, result: Result, exported: list[Exported]
) -> dict[str, Callable[[Budget], None]]:
    provider = args.provider

    def peak(budget: Budget) -> None:
        precisions = ("fp32",) if provider == "cpu" else ("fp32", "tf32", "fp16")
        seconds = min(scale.matrix_s, budget.left_s / 3)
        found = {
            precision: device.matrix_peak(provider, precision, scale.matrix_side, seconds)
            for precision in precisions
        }
        result.set(
            "peak", side=scale.matrix_side, clocks=device.clocks(),
            tflops={name: float(f"{value / 1e12:.4g}") for name, value in found.items()},
        )  # fmt: skip

    def latencies(budget: Budget) -> None:
        tflops = result.parts.get("peak", {}).get("tflops", {})
        peaks = {name: value * 1e12 for name, value in tflops.items()}
        latency.measure(exported, provider, scale, peaks, result, budget)

    def beside_torch(budget: Budget) -> None:
        eager.measure(
            exported, provider, scale, result, budget, mode=args.compile_mode,
            backend="eager" if args.quick else "inductor",
        )  # fmt: skip

    return {
        "peak": peak,
        "latency": latencies,
        "end_to_end": lambda budget: end_to_end.measure(
            exported, provider, scale, result, budget, args.work
        ),
        "torch": beside_torch,
        "kernels": lambda budget: kernels.measure(exported, provider, scale, result, budget),
    }


def _prepare(args: argparse.Namespace, scale: Scale, result: Result) -> list[Exported]:
    print("== networks", file=sys.stderr, flush=True)
    begun = time.perf_counter()
    exported = networks.prepare_all(args.networks, args.work, scale.narrow)
    result.set(
        "networks", seconds=round(time.perf_counter() - begun, 1),
        layers={e.name: {"fp16": e.half_layers, "fp32": e.float_layers} for e in exported},
    )  # fmt: skip
    return exported


def _attempt(part: str, run: Callable[[], None], result: Result) -> None:
    """A part that cannot be had leaves a sentence in its place, and the others go on."""
    print(f"== {part}", file=sys.stderr, flush=True)
    begun = time.perf_counter()
    for word in ("failed", "left_out"):
        result.parts.get(part, {}).pop(word, None)
    try:
        run()
    except ModuleNotFoundError as error:
        result.set(part, left_out=f"there is no module {error.name} here")
    except (Exception, SystemExit) as error:  # whatever a driver, a server or a compiler raises
        traceback.print_exc()
        result.set(part, failed=f"{type(error).__name__}: {error}"[:1000])
    result.set(part, seconds=round(time.perf_counter() - begun, 1))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="narrow networks, tiny counts")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--only", nargs="+", choices=tuple(SHARES), help="parts to run")
    parser.add_argument("--networks", nargs="+", choices=networks.NAMES, default=networks.NAMES)
    parser.add_argument("--compile-mode", default="default", help="of torch.compile")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--work", type=Path, default=WORK, help=f"exported networks ({WORK})")
    parser.add_argument("--out", type=Path, help="(bench/results/gpu-DEVICE.json)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
