"""Measures what hooks cost: a server without any, with ones that do nothing, with the example's.

    python -m bench.hooks [--rounds 5] [--seconds 4]

Each round asks each server in turn, one image at a time, and then eight; the median of the rounds
is reported, with the images per second over those of the server without hooks in the same round.
"nothing" has a `before` and an `after` that return what they were given: what is left is the copies
and checks around them, and label maps that the pool packs in place of the network's thread.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import generator, record, servers
from bench.images import write_jpeg
from bench.servers import ROOT, Command

SIZE = (360, 480)
CONNECTIONS = (1, 8)
KINDS: Mapping[str, str] = {
    "none": "",
    "nothing": "nothing",
    "example": "lower-half,merge,alert",
}
"""Lists what FCN_HOOKS is set to, by the name of the row."""
_NOTHING = """\
from service.hooks import Hook

class Nothing(Hook):
    def before(self, image, context):
        return image

    def after(self, label_map, context):
        return label_map
"""
_POINTS = """\
[fcn.hooks]
nothing = nothing_hook:Nothing
lower-half = street_hooks:LowerHalf
merge = street_hooks:Merge
alert = street_hooks:Alert
"""


def install(folder: Path) -> None:
    """Makes the hooks importable from a folder, as pip would."""
    example = ROOT / "docs" / "examples" / "hooks" / "street_hooks.py"
    (folder / example.name).write_bytes(example.read_bytes())
    (folder / "nothing_hook.py").write_text(_NOTHING)
    info = folder / "hooks-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hooks\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(_POINTS)


def hooked(model: Path, folder: Path, names: str) -> Command:
    """Starts `fcn serve` with these hooks; without names, as it is started everywhere."""
    flags = [f"--hooks={names}"] if names else []
    command = servers.fcn_serve(ROOT, model, flags=flags)
    path = f"{command.environment['PYTHONPATH']}:{folder}"
    return replace(command, environment={**command.environment, "PYTHONPATH": path})


def measure(model: Path, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Gives a row for each kind and number of connections. Raises: CannotRun."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        install(folder)
        image = write_jpeg(folder / "image.jpg", SIZE)
        commands = {}
        for kind, names in KINDS.items():  # one after the other: each takes ports free by then
            commands[kind] = hooked(model, folder, names)
            held.enter_context(servers.running(commands[kind], image.read_bytes()))
        for turn in range(rounds):
            kinds = list(commands) if turn % 2 == 0 else list(reversed(commands))
            for count in CONNECTIONS:
                for kind in kinds:
                    load = generator.closed(commands[kind].url, image, count, seconds)
                    found.setdefault((kind, count), []).append(load)
    return [row_of(kind, count, found) for kind, count in found]


def row_of(
    kind: str, count: int, found: Mapping[tuple[str, int], Sequence[dict[str, Any]]]
) -> dict[str, Any]:
    loads, base = found[kind, count], found["none", count]
    # On a busy machine a short turn may have no answer.
    times = [load["latency"]["p50_ms"] for load in loads if load["answered"]]
    ratios = sorted(
        load["answered_per_s"] / other["answered_per_s"]
        for load, other in zip(loads, base, strict=True)
        if other["answered"]
    )
    picked = (statistics.median(ratios), ratios[0], ratios[-1]) if ratios else (0.0, 0.0, 0.0)
    names = ("median", "least", "largest")
    return {
        "hooks": kind,
        "connections": count,
        "p50_ms": round(statistics.median(times), 2) if times else None,
        "images_per_s": round(statistics.median(load["answered_per_s"] for load in loads), 1),
        "of_none": {name: round(r, 3) for name, r in zip(names, picked, strict=True)},
    }


def main(words: Sequence[str] | None = None) -> int:
    parser = record.parser("bench.hooks", __doc__)
    models = sorted((ROOT / "model_repository").glob("*/*/model.onnx"))
    parser.add_argument("--model", type=Path, default=models[0] if models else None,
                        help="<repository>/<name>/<version>/model.onnx")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "hooks.json")
    args = parser.parse_args(words)
    rows = measure(args.model, args.rounds, args.seconds)
    for row in rows:
        print(row)
    record.write(args.out, {"size": SIZE, "seconds": args.seconds, "rounds": args.rounds,
                            "rows": rows})  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
