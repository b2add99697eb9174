"""Shows where a request's time goes, over REST and gRPC, with few and with many clients.

    python -m bench.stages [--seconds 8]

Starts `fcn serve` as its users do, sends it a drawn JPEG street scene in closed loops, and reports
what the client waits and what the server says of itself (decode, queue, infer, render). Clients and
server share the machine's cores, as they would not in production.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import generator, record, servers
from bench.images import Size, write_jpeg
from bench.servers import ROOT, Command

SIZES = ((360, 480), (375, 500))
CONNECTIONS = (1, 8)
STAGES = ("decode", "queue", "infer", "render")
_PER_PROCESS = 8
"""Connections that share a generator's process: with more, it would be what is measured."""


def main(words: Sequence[str] | None = None) -> int:
    parser = record.parser("bench.stages", __doc__)
    models = sorted((ROOT / "model_repository").glob("*/*/model.onnx"))
    parser.add_argument("--model", type=Path, default=models[0] if models else None,
                        help="<repository>/<name>/<version>/model.onnx")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=8.0, help="of each row")
    parser.add_argument("--out", type=Path, default=record.RESULTS / "stages.json")
    args = parser.parse_args(words)
    rows = measure(servers.fcn_serve(ROOT, args.model), SIZES, CONNECTIONS, args.seconds)
    for line in table(rows):
        print(line)
    record.write(args.out, {"seconds_per_row": args.seconds, "rows": rows})
    return 0


def measure(
    command: Command,
    sizes: Sequence[Size],
    connections: Iterable[int],
    seconds: float,
    *,
    ready_s: float = servers.READY_S,
) -> list[dict[str, Any]]:
    """Gives a row for each size, transport and number of clients. Raises: CannotRun."""
    most = max(1, len(os.sched_getaffinity(0)) // 4)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = {size: write_jpeg(Path(folder) / f"{size}.jpg", size) for size in sizes}
        with servers.running(command, images[sizes[0]].read_bytes(), ready_s=ready_s):
            for (height, width), image in images.items():
                for transport, url in (("rest", command.url), ("grpc", command.grpc)):
                    for count in connections:
                        processes = min(most, -(-count // _PER_PROCESS))
                        found = generator.closed(
                            url, image, count, seconds, processes=processes, stages=True
                        )
                        row = {"transport": transport, "height": height, "width": width}
                        row |= {"connections": count, **generator.without_lists(found)}
                        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Writes lines of Markdown."""
    lines = ["| over | size | clients | p50 | p99 | images/s | decode | queue | infer | render |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        stages = " | ".join(f"{row['stages'][stage]['p50_ms']:.1f}" for stage in STAGES)
        lines.append(
            f"| {row['transport']} | {row['height']}x{row['width']} | {row['connections']} "
            f"| {row['latency']['p50_ms']:.1f} | {row['latency']['p99_ms']:.1f} "
            f"| {row['answered_per_s']:.1f} | {stages} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
