"""CPU of a request by thread, with a network that does next to nothing: what the server costs.

    python -m bench.request_path [--before ../before] [--connections 8]

Every pixel gets class 0 in a fraction of a millisecond, so what is left is HTTP, the way through
the segmenter, decode and render. CPU time by thread (/proc/PID/task) moves less than clock time on
a shared machine. With --before, another checkout of the project takes turns with this one. Needs
wrk and Linux.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench import record
from bench.contenders import ROOT
from bench.segment_load import jpeg
from bench.versus import State, serving, wrk
from model.contract import METADATA_KEY, ClassInfo, Contract, InputSpec, OutputSpec, TrainingData

SIZE = (360, 480)


def write_network(repository: Path) -> Path:
    """Class 0 everywhere, without a look at the picture."""
    contract = Contract(
        model_name="nothing",
        architecture="constant",
        classes=(ClassInfo(0, "nothing", (0, 0, 0)), ClassInfo(1, "something", (255, 255, 255))),
        training_data=TrainingData("none", "CC0-1.0"),
        input=InputSpec(stride=1),
        outputs=OutputSpec(),
    )
    integers = [
        numpy_helper.from_array(np.array([value], np.int64), name)
        for name, value in (("start", 0), ("end", 3))
    ]
    zero = numpy_helper.from_array(np.zeros(1, np.uint8))
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Slice", ["shape", "start", "end"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["label_map"], value=zero),
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("label_map", TensorProto.UINT8, ["N", "H", "W"])],
        integers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: contract.to_json()})
    path = repository / "nothing" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(model, str(path))
    return path


def cpu_s(pid: int) -> dict[str, float]:
    """Seconds of CPU so far, of the event loop's thread and of all others."""
    found = {"event loop": 0.0, "other threads": 0.0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (task / "schedstat").read_text()
        except OSError:  # gone meanwhile
            continue
        kind = "event loop" if task.name == str(pid) else "other threads"
        found[kind] += int(text.split()[0]) / 1e9
    return found


def page_faults(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[7])


def slot(pid: int, url: str, picture: Path, connections: int, seconds: float) -> dict[str, float]:
    before, faults = cpu_s(pid), page_faults(pid)
    found = wrk(url, picture, connections, seconds)
    after = cpu_s(pid)
    images = found["images_per_s"] * seconds
    spent = {kind: 1e3 * (after[kind] - before.get(kind, 0.0)) / images for kind in after}
    return {
        "images_per_s": found["images_per_s"],
        "p50_ms": found["p50_ms"],
        "page_faults": (page_faults(pid) - faults) / images,
        **{f"{kind}_ms": ms for kind, ms in spent.items()},
        "cpu_ms": sum(spent.values()),
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.request_path", description=__doc__)
    parser.add_argument("--before", type=Path, help="another checkout, taking turns")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=record.RESULTS / "request-path.json")
    args = parser.parse_args(words)
    states = [State("now", ROOT, ())]
    if args.before:
        states.insert(0, State("before", args.before.resolve(), ()))
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        picture = folder / "picture.jpg"
        picture.write_bytes(jpeg(*SIZE, seed=0))
        model = write_network(folder / "models")
        servers = {s.name: stack.enter_context(serving(s, model, "fp32")) for s in states}
        for connections in args.connections:
            slots = defaultdict(list)
            for server in servers.values():
                wrk(server.url, picture, connections, 1)
            for _ in range(args.rounds):
                for name, server in servers.items():
                    slots[name].append(
                        slot(server.pid, server.url, picture, connections, args.seconds)
                    )
            for name, found in slots.items():
                row = {key: round(statistics.median(s[key] for s in found), 3) for key in found[0]}
                rows.append({"state": name, "connections": connections, **row})
                print(_line(rows[-1]), flush=True)
    record.write(args.out, {"size": SIZE, "rounds": args.rounds, "rows": rows})
    return 0


def _line(row: dict[str, Any]) -> str:
    kinds = [f"{k.removesuffix('_ms')} {v:.3f}" for k, v in row.items()
             if re.search(r"_ms$", k) and k not in ("p50_ms", "cpu_ms")]  # fmt: skip
    return (
        f"{row['state']:6s} {row['connections']:3d} connections: {row['images_per_s']:7.1f}/s  "
        f"cpu {row['cpu_ms']:.3f} ms ({', '.join(kinds)})  page faults {row['page_faults']:.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
