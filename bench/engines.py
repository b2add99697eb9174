"""How the CPU should run the network: instances, threads, batches, session options, engines.

    python -m bench.engines --part instances|options|engines|precisions [--seconds 60]

In one process, without a server, taking turns in short slots: a slot runs every caller of a
configuration in a loop. Four parts, since each needs a quiet machine for about a minute:
instances (who runs at once, and what batches bring, with the bare limit: decode, network and encode
in loops), options (of ONNX Runtime's session), engines (OpenVINO beside ONNX Runtime), precisions
(the 8-bit file beside the fp32 one).
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bench import record
from bench.segment_load import jpeg
from model.contract import Contract
from service.core.engines.choice import INT8_FILE
from service.core.engines.cores import Plan
from service.core.engines.onnx_runtime import Session
from service.core.engines.openvino import OpenVinoNetwork
from service.core.images.decode import decode
from service.core.outputs import label_map_png
from service.core.types import Network, UInt8Array
from training.datasets.drawn import draw

MODEL = Path("model_repository/camvid-fcn8s-mobilenet_v1/1/model.onnx")
SIZE = (360, 480)
_PAUSE_S = 0.05

Run = Callable[[UInt8Array], UInt8Array]
Caller = Callable[[], object]
Configuration = tuple[Sequence[Caller], int]
"""What runs at once, and the images of each call."""


def main() -> None:
    parser = argparse.ArgumentParser(description="ways to run the network on the CPU")
    parser.add_argument("--part", choices=sorted(PARTS), required=True)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--slot", type=float, default=0.4, help="seconds of each turn")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = take_turns(PARTS[args.part](args.model), args.seconds, args.slot)
    for row in rows:
        print(f"| {row['name']} | {row['images_per_s']:.1f} | {row['p50_ms']:.1f} |")
    out = args.out or record.RESULTS / f"engines-{args.part}.json"
    record.write(out, {"height": SIZE[0], "width": SIZE[1], "rows": rows})


def take_turns(
    configurations: dict[str, Configuration], seconds: float, slot: float
) -> list[dict[str, Any]]:
    """Per configuration the median over its slots of images per second, and of a call's time."""
    rates: dict[str, list[float]] = {name: [] for name in configurations}
    times: dict[str, list[float]] = {name: [] for name in configurations}
    for callers, _ in configurations.values():
        for caller in callers:
            caller()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, (callers, images) in configurations.items():
            time.sleep(_PAUSE_S)  # threads that spin have stopped by then
            calls, elapsed = run_slot(callers, slot)
            rates[name].append(len(calls) * images / elapsed)
            times[name] += calls
    return [
        {
            "name": name,
            "images_per_s": round(statistics.median(rates[name]), 2),
            "p50_ms": round(statistics.median(times[name]) * 1e3, 2),
            "slots": len(rates[name]),
        }
        for name in configurations
    ]


def run_slot(callers: Sequence[Caller], slot: float) -> tuple[list[float], float]:
    """Seconds of every call, and of the slot."""
    calls: list[float] = []
    started = time.perf_counter()

    def loop(caller: Caller) -> None:
        while (begun := time.perf_counter()) < started + slot:
            caller()
            calls.append(time.perf_counter() - begun)

    threads = [threading.Thread(target=loop, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return calls, time.perf_counter() - started


def instances(model: Path) -> dict[str, Configuration]:
    one = Session(model, provider="cpu", threads=1, instances=2, alone_threads=2)
    other = Session(model, provider="cpu", threads=1)
    two = Session(model, provider="cpu", threads=2)
    pair = shared_runs(one)
    single, shared = pair[:1], [two.run, two.run]
    rows: dict[str, Configuration] = {
        "1 call, 1 thread": (calls(single, 1), 1),
        "1 call, 2 threads": (calls([two.run], 1), 1),
        "2 calls, one session of 2 threads": (calls(shared, 1), 1),
        "2 calls, one session of 1 thread": (calls(pair, 1), 1),
        "2 calls, two sessions of 1 thread": (calls([one.run, other.run], 1), 1),
    }
    for images in (2, 4, 8):
        rows[f"1 call of {images}, 2 threads"] = (calls([two.run], images), images)
        rows[f"2 calls of {images}, one session of 1 thread"] = (calls(pair, images), images)
    rows["bare limit: 2 loops on one session of 1 thread"] = (loops(pair), 1)
    rows["2 loops on one session of 2 threads"] = (loops(shared), 1)
    rows["3 loops on one session of 1 thread"] = (loops([*pair, one.run]), 1)
    rows["1 loop, 2 threads"] = (loops([two.run]), 1)
    return rows


def options(model: Path) -> dict[str, Configuration]:
    def call(threads: int, entries: dict[str, str] | None = None, **attributes: Any) -> Caller:
        session = open_session(model, threads, entries or {}, attributes)
        image = pictures(1)
        return lambda: session.run(["label_map"], {"image": image})

    levels = onnxruntime.GraphOptimizationLevel
    spin = {"session.intra_op.allow_spinning": "1"}
    brief = {**spin, "session.intra_op.spin_duration_us": "100"}
    plain, lean = call(1), call(1, enable_cpu_mem_arena=False)
    return {
        "2 threads": ([call(2)], 1),
        "2 threads, spinning": ([call(2, spin)], 1),
        "2 threads, spinning 100 us": ([call(2, brief)], 1),
        "2 threads, dynamic_block_base 4": ([call(2, {"session.dynamic_block_base": "4"})], 1),
        "2 threads, memory pattern": ([call(2, enable_mem_pattern=True)], 1),
        "2 threads, no arena": ([call(2, enable_cpu_mem_arena=False)], 1),
        "2 threads, bound buffers": ([bound(model)], 1),
        "2 threads, extended": ([call(2, graph_optimization_level=levels.ORT_ENABLE_EXTENDED)], 1),
        "2 threads, basic": ([call(2, graph_optimization_level=levels.ORT_ENABLE_BASIC)], 1),
        "2 calls, 1 thread": ([plain, plain], 1),
        "2 calls, 1 thread, no arena": ([lean, lean], 1),
    }


def engines(model: Path) -> dict[str, Configuration]:
    ours = Session(model, provider="cpu", threads=1, instances=2, alone_threads=2)
    contract: Contract = ours.contract
    theirs = OpenVinoNetwork(model, contract, Plan(2, 1, 2))
    rows: dict[str, Configuration] = {}
    for name, network in (("ONNX Runtime", ours), ("OpenVINO", theirs)):
        rows[f"{name}, 2 calls on 1 thread each"] = (calls(shared_runs(network), 1), 1)
        rows[f"{name}, 1 call on 2 threads"] = (calls([network.instances[-1].run], 1), 1)
    return rows


def precisions(model: Path) -> dict[str, Configuration]:
    """The 8-bit file beside `model`, in both engines."""
    rows: dict[str, Configuration] = {}
    for precision, file in (("fp32", model), ("int8", model.with_name(INT8_FILE))):
        ours = Session(file, provider="cpu", threads=1, alone_threads=2)
        theirs = OpenVinoNetwork(file, ours.contract, Plan(1, 1, 2))
        for name, network in (("ONNX Runtime", ours), ("OpenVINO", theirs)):
            for threads, instance in enumerate(network.instances, start=1):
                rows[f"{precision}, {name}, {threads} threads"] = (calls([instance.run], 1), 1)
    return rows


PARTS = {"instances": instances, "options": options, "engines": engines, "precisions": precisions}


def shared_runs(network: Network) -> list[Run]:
    return [instance.run for instance in network.instances if not instance.full_device]


def calls(runs: Sequence[Run], images: int) -> list[Caller]:
    batch = pictures(images)
    return [lambda run=run: run(batch) for run in runs]  # type: ignore[misc]


def loops(runs: Sequence[Run]) -> list[Caller]:
    """A JPEG's bytes to a PNG's, as the server does it."""
    bodies = [jpeg(*SIZE, seed) for seed in range(4)]
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8)

    def loop(run: Run, seed: int) -> Caller:
        turn = iter(range(seed, 10**9))

        def once() -> object:
            body = bodies[next(turn) % len(bodies)]
            rgb = decode(body, max_bytes=1 << 25, max_pixels=1 << 25).rgb
            return label_map_png(run(rgb[None])[0], palette)

        return once

    return [loop(run, seed) for seed, run in enumerate(runs)]


def pictures(images: int) -> UInt8Array:
    return np.stack([draw(*SIZE, np.random.default_rng(seed)).image for seed in range(images)])


def open_session(
    model: Path, threads: int, entries: dict[str, str], attributes: dict[str, Any]
) -> onnxruntime.InferenceSession:
    """As service/core/engines/onnx_runtime.py sets them, but for what is given."""
    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.enable_mem_pattern = False
    for name, value in attributes.items():
        setattr(chosen, name, value)
    for name, value in {"session.intra_op.allow_spinning": "0", **entries}.items():
        chosen.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(str(model), chosen, providers=["CPUExecutionProvider"])


def bound(model: Path) -> Caller:
    """Input and output buffers reused from call to call."""
    session = open_session(model, 2, {}, {})
    binding = session.io_binding()
    image = onnxruntime.OrtValue.ortvalue_from_numpy(pictures(1))
    labels = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, *SIZE), np.uint8))
    binding.bind_ortvalue_input("image", image)
    binding.bind_ortvalue_output("label_map", labels)
    return lambda: session.run_with_iobinding(binding)


if __name__ == "__main__":
    main()
