"""Measures what logs and traces cost a request, in microseconds of a core, all threads together.

    python -m bench.telemetry --out bench/results/telemetry.json

Requests without an image begin and end as the transports have it, in turns: with metrics alone,
with a JSON line each, and with spans of a share of them besides, exported over HTTP to a process
that throws them away. The differences are what an image pays, however fast its network is.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench import record
from bench.servers import free_port
from bench.turns import order
from service.api.call import Calls
from service.core.types import SegmentReply, Timings
from service.logs import JsonFormatter, LogWriter
from service.telemetry import Telemetry
from service.tracing import Tracing

_SINK = """
import http.server
class Sink(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *said): pass
http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Sink).serve_forever()
"""
_LABEL_MAP = np.zeros((1, 1), np.uint8)


def requests(calls: Calls, n: int, pause_s: float) -> None:
    for _ in range(n):
        headers = {"content-type": "image/jpeg"}
        with calls.begin("rest", "Segment", address="127.0.0.1", carrier=headers) as call:
            call.uploaded()
            moment = time.monotonic()
            timings = Timings(0.001, 0.002, 0.01, 0.0005, moment, moment + 0.003)
            timings.marks = (call.follow(timings),)
            call.answered(SegmentReply(b"", "", 360, 480, "m", "1", _LABEL_MAP, timings))
        time.sleep(pause_s)  # so that the threads which log and export get their turn


def main(words: Sequence[str] | None = None) -> int:
    parser = record.parser("bench.telemetry", __doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4000, help="of each way in each round")
    parser.add_argument("--pause-ms", type=float, default=2.0, help="between them")
    parser.add_argument("--share", type=float, default=0.1, help="of the requests is traced")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    port = free_port()
    os.environ |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(args.share),
    }
    telemetry, null = Telemetry(0.175), os.open(os.devnull, os.O_WRONLY)
    handler, root = LogWriter(null), logging.getLogger()
    handler.setFormatter(JsonFormatter())
    root.handlers[:] = [handler]
    sink = subprocess.Popen([sys.executable, "-c", _SINK.format(port=port)])
    try:
        tracing = Tracing("http/protobuf")
        plain = Calls(telemetry, None, deadline_s=30, model_label=lambda name: "m")
        traced = Calls(
            telemetry, None, deadline_s=30, model_label=lambda name: "m", tracing=tracing
        )
        ways: dict[str, tuple[Calls, int]] = {
            "metrics": (plain, logging.WARNING),
            "metrics_logs": (plain, logging.INFO),
            "metrics_logs_traces": (traced, logging.INFO),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(-1, args.rounds):  # the first is not counted
            for name in order(ways, turn):
                calls, level = ways[name]
                root.setLevel(level)
                began_s = time.process_time()
                requests(calls, args.requests, args.pause_ms / 1000)
                if turn >= 0:
                    spent_s = time.process_time() - began_s
                    found[name].append(round(1e6 * spent_s / args.requests, 1))
        tracing.close()
    finally:
        sink.kill()
        sink.wait()
    result = {"rounds": args.rounds, "requests": args.requests, "share_traced": args.share}
    result |= {"cpu_us_per_request": found}
    print(result)
    if args.out:
        record.write(args.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
