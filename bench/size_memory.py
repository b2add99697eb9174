"""Memory of the runtime over a thousand different image sizes, with each kind of allocation.

    python -m bench.size_memory [--sizes 1000] [--arena server|off|shrink]

Two callers on one session of one thread, as the server has on two cores. The sizes are drawn once,
up to 480x640, none twice. Resident memory is read after every tenth of the images. Needs no quiet
machine; what the allocations cost in time, `bench.engines --part options` says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bench import record

MODEL = Path("model_repository/camvid-fcn8s-mobilenet_v1/1/model.onnx")
ARENAS = ("server", "off", "shrink")
CALLERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description="memory over many image sizes")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--sizes", type=int, default=1000)
    parser.add_argument("--arena", choices=ARENAS, help="measure this one, here, and print it")
    parser.add_argument("--arenas", nargs="+", choices=ARENAS, default=list(ARENAS))
    parser.add_argument("--out", type=Path, default=record.RESULTS / "size-memory.json")
    args = parser.parse_args()
    if args.arena:
        print(json.dumps(measure(args.model, args.sizes, args.arena)))
        return
    rows = []
    for arena in args.arenas:
        # A process each: freed memory of one would be reused by the next.
        command = [sys.executable, "-m", "bench.size_memory", "--model", str(args.model)]
        command += ["--sizes", str(args.sizes), "--arena", arena]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
        print_row(rows[-1])
    record.write(args.out, {"sizes": args.sizes, "callers": CALLERS, "rows": rows})


def measure(model: Path, count: int, arena: str) -> dict[str, Any]:
    """One arena setting: resident MB after loading and after every tenth of the images."""
    session = open_session(model, arena)
    run_options = onnxruntime.RunOptions()
    if arena == "shrink":
        run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(size: tuple[int, int]) -> None:
        session.run(["label_map"], {"image": np.zeros((1, *size, 3), np.uint8)}, run_options)

    loaded_mb = resident_mb()
    sizes = draw_sizes(count)
    resident = []
    with ThreadPoolExecutor(CALLERS) as pool:
        step = max(1, count // 10)
        for begin in range(0, count, step):
            for done in [pool.submit(run, size) for size in sizes[begin : begin + step]]:
                done.result()
            resident.append(resident_mb())
    return {"arena": arena, "loaded_mb": loaded_mb, "resident_mb": resident}


def open_session(model: Path, arena: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = arena != "off"
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def draw_sizes(count: int) -> list[tuple[int, int]]:
    """`count` different (height, width)."""
    generator = np.random.default_rng(0)
    sizes: dict[tuple[int, int], None] = {}
    while len(sizes) < count:
        sizes[int(generator.integers(32, 481)), int(generator.integers(32, 641))] = None
    return list(sizes)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['arena']:8s} loaded {row['loaded_mb']:.0f} MB, then "
        f"{' '.join(f'{mb:.0f}' for mb in row['resident_mb'])} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
