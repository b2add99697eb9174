"""Runs the parts one after the other: `python -m bench.gpu`, see the package."""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import record
from bench.gpu import device, latency, networks, served
from bench.gpu.networks import QUICK, Scale

PARTS = ("latency", "served")
WORK = Path("build/gpu-bench")


def main(words: Sequence[str] | None = None) -> int:
    parser = record.parser("bench.gpu", __doc__)
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="MobileNetV1, narrow, tiny counts")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--networks", nargs="+", choices=networks.NAMES, help="(all)")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--work", type=Path, default=WORK, help=f"exported networks ({WORK})")
    parser.add_argument("--out", type=Path, help="(bench/results/gpu-DEVICE.json)")
    args = parser.parse_args(words)
    scale = QUICK if args.quick else Scale()
    head = {**device.describe(args.provider), "quick": args.quick, "weights": "random"}
    slug = re.sub(r"[^a-z0-9]+", "-", head["device_name"].lower()).strip("-")
    path = args.out or record.RESULTS / f"gpu-{slug}{'-quick' if args.quick else ''}.json"
    parts = {} if args.fresh else earlier(path, head)
    exported = [
        networks.prepare(name, args.work, scale.narrow) for name in args.networks or scale.networks
    ]

    def save(part: str, found: dict[str, Any]) -> None:
        parts[part] = found
        record.write(path, {**head, "parts": parts}, announce=False)

    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "latency": lambda: latency.measure(exported, args.provider, scale),
        "served": lambda: served.measure(exported, args.provider, scale),
    }
    for part in args.only:
        save(part, attempt(part, runs[part]))
    for line in [*latency.table(parts), *served.table(parts)]:
        print(line)
    print(path)
    return int(any("failed" in parts[part] for part in args.only))


def earlier(path: Path, head: dict[str, Any]) -> dict[str, Any]:
    """Reads the parts that an earlier run left, if it was of the same device and size."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    same = all(found.get(name) == head[name] for name in ("device_name", "quick"))
    return dict(found["parts"]) if same else {}


def attempt(part: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Runs a part; one that cannot be had leaves a sentence in its place."""
    print(f"== {part}", file=sys.stderr, flush=True)
    begun = time.perf_counter()
    try:
        found = run()
    except (Exception, SystemExit) as error:  # whatever a driver, a server or a compiler raises
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"[:1000]}
    return {**found, "seconds": round(time.perf_counter() - begun, 1)}


if __name__ == "__main__":
    sys.exit(main())
