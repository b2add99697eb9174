"""Draws docs/figures/dashboard.png: what the dashboard's queries give for a server under load.

`pip install matplotlib`, then `python -m tests.draw_dashboard`: it takes a minute. A real
Prometheus watches the shipped model: calm load, then more callers than it can answer in time, then
calm load again. The rules are those of docker/prometheus/rules.yml, a hundred times as fast.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import grpc
import httpx
import matplotlib
import matplotlib.pyplot as plt
import numpy as np

from fcn_client.stubs import segmentation_pb2 as pb
from tests.drawing import jpeg, street
from tests.prometheus import Prometheus, free_port, watching
from tests.serving import ROOT, Server, running
from tools.make_dashboard import RATE, Panel, panels

FILE: Final = ROOT / "docs" / "figures" / "dashboard.png"
CALM_S, CROWD_S = 15.0, 12.0
CALLERS, CROWD = 2, 24
WINDOW: Final = "[3s]"
"""Stands in for Grafana's choice, with a scrape every half second."""
SHOWN: Final = (
    "Availability: budget left",
    "Burn rate",
    "Latency, heat map",
    "Latency against the target",
    "Time in each stage, on average",
    "Requests by transport and method",
    "Rejections by reason",
    "Queue",
    "Why batches close",
)


def ask(server: Server, number: int, ends_s: float) -> None:
    """Sends one image after the other, by turns of the callers over REST and gRPC."""
    image = jpeg(street(360, 480, seed=number))
    with httpx.Client(base_url=server.url, timeout=60.0) as client:
        while time.monotonic() < ends_s:
            if number % 2:
                time.sleep(0.1)
                with contextlib.suppress(grpc.RpcError):  # refused
                    server.stub.Segment(pb.SegmentRequest(image=image), timeout=60)
            elif client.post("/segment", content=image).status_code != 200:
                time.sleep(0.3)


def load(server: Server, callers: int, seconds: float) -> None:
    ends_s = time.monotonic() + seconds
    threads = [threading.Thread(target=ask, args=(server, n, ends_s)) for n in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measured() -> dict[str, list[list[dict[str, Any]]]]:
    """Runs the load; gives the series of each query of the panels that are shown, by title."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        watching(Path(folder), f"127.0.0.1:{port}") as prometheus,
        running(
            ROOT / "model_repository", http_port=port, max_inflight=16, max_wait_ms=2000
        ) as server,
    ):
        time.sleep(5)  # until Prometheus has looked for what to watch
        began_s = time.time()
        load(server, CALLERS, CALM_S)
        load(server, CROWD, CROWD_S)
        load(server, CALLERS, CALM_S)
        shown = [panel for row in panels().values() for panel in row if panel.title in SHOWN]
        return {
            panel.title: [series(prometheus, query, began_s) for query, _ in panel.queries]
            for panel in shown
        }


def series(prometheus: Prometheus, query: str, began_s: float) -> list[dict[str, Any]]:
    asked = query.replace(RATE, WINDOW)
    end_s = time.time()
    found = prometheus.get("query_range", query=asked, start=began_s, end=end_s, step="500ms")
    return [
        {
            "labels": one["metric"],
            "at": [float(at) - began_s for at, _ in one["values"]],
            "values": [float(value) for _, value in one["values"]],
        }
        for one in found["result"]
    ]


def legend(text: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def heat_map(axes: Any, found: list[list[dict[str, Any]]], panel: Panel) -> None:
    rows = sorted(found[0], key=lambda one: float(one["labels"]["le"]))
    edges = [float(one["labels"]["le"]) for one in rows]
    at = rows[0]["at"]
    below = np.array([one["values"] for one in rows if len(one["values"]) == len(at)])
    counts = np.diff(below, axis=0, prepend=0)[:-1]
    heights = [0.002, *edges[:-1]]
    axes.pcolormesh([*at, at[-1] + 0.5], heights, np.ma.masked_less(counts, 0.01), cmap="Oranges")
    axes.axhline(0.175, color="red", linestyle="--", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(0.01, 10)
    axes.text(1, 0.19, "target 175 ms", color="red", fontsize=7)


def lines(axes: Any, found: list[list[dict[str, Any]]], panel: Panel) -> None:
    shown = [
        (legend(text, one["labels"]), one)
        for (_, text), several in zip(panel.queries, found, strict=True)
        for one in several
        if any(value for value in one["values"])
    ]
    if panel.stack and shown:
        at = sorted({moment for _, one in shown for moment in one["at"]})
        rows = [
            np.nan_to_num([dict(zip(one["at"], one["values"], strict=True)).get(m, 0) for m in at])
            for _, one in shown
        ]
        axes.stackplot(at, rows, labels=[name for name, _ in shown], alpha=0.7)
    else:
        for name, one in shown:
            style = {"color": "red", "linestyle": "--"} if name == "target" else {}
            axes.plot(one["at"], one["values"], label=name, linewidth=1, **style)
    if panel.limit is not None:
        axes.axhline(panel.limit, color="red", linestyle="--", linewidth=1)
    if any(name for name, _ in shown):
        axes.legend(fontsize=6, loc="upper left")


def main() -> None:
    matplotlib.use("Agg")
    found = measured()
    figure, grid = plt.subplots(3, 3, figsize=(13, 8), sharex=True, layout="constrained")
    by_title = {panel.title: panel for row in panels().values() for panel in row}
    for axes, title in zip(grid.flat, SHOWN, strict=True):
        panel = by_title[title]
        (heat_map if panel.kind == "heatmap" else lines)(axes, found[title], panel)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2)
    for axes in grid[-1]:
        axes.set_xlabel("seconds", fontsize=7)
    figure.savefig(FILE, dpi=80)


if __name__ == "__main__":
    main()
