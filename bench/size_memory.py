"""Memory of the runtime and of the server over a thousand different image sizes.

    python -m bench.size_memory [--sizes 1000] [--arena server|off|shrink] [--malloc kept|default]

The runtime alone with each kind of allocation: two callers on one session of one thread, where
freed memory is kept as `fcn serve` keeps it (`service.core.engines.memory.keep_freed_memory`), and
with glibc's defaults. Then `fcn serve` itself, which gets a JPEG of each size from four callers.
The sizes are drawn once, up to 480x640, none twice. Resident memory is read after every tenth of
the images. Needs no quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bench import record
from bench.segment_load import Server, jpeg
from service.core.engines.memory import keep_freed_memory

MODEL = Path("model_repository/camvid-fcn8s-mobilenet_v1/1/model.onnx")
ARENAS = ("server", "off", "shrink")
MALLOCS = ("kept", "default")
CALLERS = 2
SERVER_CALLERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description="memory over many image sizes")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--sizes", type=int, default=1000)
    parser.add_argument("--arena", choices=ARENAS, help="measure this one, here, and print it")
    parser.add_argument("--arenas", nargs="+", choices=ARENAS, default=list(ARENAS))
    parser.add_argument("--malloc", choices=MALLOCS, default="kept", help="with --arena")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "size-memory.json")
    args = parser.parse_args()
    if args.arena:
        print(json.dumps(measure(args.model, args.sizes, args.arena, args.malloc)))
        return
    rows = []
    for arena, malloc in itertools.product(args.arenas, MALLOCS):
        # A process each: freed memory of one would be reused by the next.
        command = [sys.executable, "-m", "bench.size_memory", "--model", str(args.model)]
        command += ["--sizes", str(args.sizes), "--arena", arena, "--malloc", malloc]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
        print_row(rows[-1])
    server = measure_server(args.model.parents[2], args.sizes)
    print_row(server)
    record.write(
        args.out, {"sizes": args.sizes, "callers": CALLERS, "rows": rows, "fcn_serve": server}
    )


def measure(model: Path, count: int, arena: str, malloc: str) -> dict[str, Any]:
    """One arena setting: resident MB after loading and after every tenth of the images."""
    if malloc == "kept":
        keep_freed_memory()
    session = open_session(model, arena)
    run_options = onnxruntime.RunOptions()
    if arena == "shrink":
        run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(size: tuple[int, int]) -> None:
        session.run(["label_map"], {"image": np.zeros((1, *size, 3), np.uint8)}, run_options)

    loaded_mb = resident_mb()
    found = over_sizes(run, count, CALLERS, os.getpid())
    return {"arena": arena, "malloc": malloc, "loaded_mb": loaded_mb, "resident_mb": found}


def measure_server(repository: Path, count: int) -> dict[str, Any]:
    """The same of `fcn serve`; after its first answer in place of after loading."""
    server = Server(repository)

    def ask(size: tuple[int, int]) -> None:
        """Raises: urllib.error.HTTPError unless it is answered."""
        headers = {"Content-Type": "image/jpeg"}
        asked = urllib.request.Request(f"{server.url}/segment", jpeg(*size, seed=0), headers)
        with urllib.request.urlopen(asked, timeout=60) as reply:
            reply.read()

    try:
        ask((360, 480))
        pid = server.process.pid
        loaded_mb = resident_mb(pid)
        found = over_sizes(ask, count, SERVER_CALLERS, pid)
    finally:
        server.stop()
    return {"arena": "fcn serve", "callers": SERVER_CALLERS, "loaded_mb": loaded_mb,
            "resident_mb": found}  # fmt: skip


def over_sizes(
    run: Callable[[tuple[int, int]], object], count: int, callers: int, pid: int
) -> list[float]:
    """Resident MB of a process after every tenth of the sizes."""
    sizes = draw_sizes(count)
    resident = []
    with ThreadPoolExecutor(callers) as pool:
        step = max(1, count // 10)
        for begin in range(0, count, step):
            for done in [pool.submit(run, size) for size in sizes[begin : begin + step]]:
                done.result()
            resident.append(resident_mb(pid))
    return resident


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


def resident_mb(pid: int | None = None) -> float:
    """Of this process, or another."""
    pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['arena']:9s} {row.get('malloc', ''):7s} loaded {row['loaded_mb']:.0f} MB, then "
        f"{' '.join(f'{mb:.0f}' for mb in row['resident_mb'])} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
