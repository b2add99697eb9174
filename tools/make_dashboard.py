"""Writes docker/grafana/dashboards/fcn.json, Grafana's dashboard: `make monitoring`.

Each panel is a row of `panels`. A test compares the file, and another runs every query against a
real Prometheus that watches a real server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tools.make_rules import BURNS, MAY_FAIL

ROOT: Final = Path(__file__).resolve().parent.parent
FILE: Final = ROOT / "docker" / "grafana" / "dashboards" / "fcn.json"
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS: Final = 24
RATE: Final = "[$__rate_interval]"
"""Grafana's own choice: at least four scrapes."""


@dataclass(frozen=True)
class Panel:
    """Is one panel: what it shows by which queries, each with its legend.

    kind: Grafana's name of it. width: of `COLUMNS`. unit: Grafana's name, too. limit: where a red
    line is drawn. stack: the series add up to a whole.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    text: str = ""
    stack: bool = False
    limit: float | None = None
    least: float | None = None
    steps: tuple[tuple[str, float | None], ...] = field(default=(("green", None),))


def rate(series: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (rate({series}{RATE}))"


def quantile(share: float, series: str, *by: str) -> str:
    return f"histogram_quantile({share:g}, {rate(f'{series}_bucket', 'le', *by)})"


def mean(series: str, *by: str) -> str:
    return f"{rate(f'{series}_sum', *by)} / {rate(f'{series}_count', *by)}"


TARGET: Final = ("max(fcn_latency_target_seconds)", "target")
REQUEST_S: Final = "fcn_request_duration_seconds"
IMAGES: Final = 'fcn_requests_total{method=~"Segment|ModelInfer"}'


def left(slo: str) -> Panel:
    return Panel(
        f"{slo.capitalize()}: budget left",
        ((f'fcn:slo_budget_left:ratio{{slo="{slo}"}}', ""),),
        "percentunit",
        "stat",
        4,
        f"Of the {MAY_FAIL[slo]:.1%} of the images of 30 days that may miss the objective.",
        least=0,
        steps=(("red", None), ("orange", 0.05), ("green", 0.25)),
    )


def met(slo: str, title: str) -> Panel:
    good = 1 - MAY_FAIL[slo]
    return Panel(
        title,
        ((f'1 - fcn:slo_error:ratio1h{{slo="{slo}"}}', ""),),
        "percentunit",
        "stat",
        4,
        f"Of the last hour; the objective is {good:.1%}.",
        steps=(("red", None), ("green", good)),
    )


def panels() -> dict[str, list[Panel]]:
    """Lists the panels, by the title of their row."""
    pages = [times for severity, _, _, times in BURNS if severity == "page"]
    burn = tuple(
        (f'fcn:slo_error:ratio{window}{{slo="{slo}"}} / {share:g}', f"{slo}, {window}")
        for slo, share in MAY_FAIL.items()
        for window in ("5m", "1h")
    )
    return {
        "Objectives": [
            left("availability"),
            left("latency"),
            met("availability", "Images answered"),
            met("latency", "Images within the target"),
            Panel(
                "Images a second",
                ((rate('fcn_slo_images_total{slo="availability"}'), ""),),
                "reqps",
                "stat",
                4,
            ),
            Panel(
                "Alerts that fire",
                (('sum(ALERTS{alertstate="firing"}) or vector(0)', ""),),
                kind="stat",
                width=4,
                steps=(("green", None), ("red", 1)),
            ),
            Panel(
                "Burn rate",
                burn,
                "short",
                width=24,
                text="How many times as fast as 30 days allow the budget is spent. At 14.4 in both "
                "windows it pages.",
                limit=max(pages),
            ),
        ],
        "Latency": [
            Panel(
                "Latency, heat map",
                ((rate(f"{REQUEST_S}_bucket", "le"), "{{le}}"),),
                "s",
                "heatmap",
                12,
                "The target is an edge of the buckets: what is above it took too long.",
            ),
            Panel(
                "Latency against the target",
                (
                    *((quantile(q, REQUEST_S), f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)),
                    TARGET,
                ),
                "s",
                width=12,
                text="From the complete upload to the answer, large images among them.",
            ),
            Panel(
                "Time in each stage, on average",
                ((mean("fcn_stage_duration_seconds", "stage"), "{{stage}}"),),
                "s",
                stack=True,
                text="A long queue wants more replicas, a long infer another engine or a GPU, a "
                "long decode or render more cores.",
            ),
            Panel(
                "p95 by model",
                ((quantile(0.95, REQUEST_S, "model"), "{{model}}"), TARGET),
                "s",
            ),
            Panel(
                "p95 by transport",
                ((quantile(0.95, REQUEST_S, "transport"), "{{transport}}"), TARGET),
                "s",
            ),
        ],
        "Traffic": [
            Panel(
                "Requests by transport and method",
                ((rate(IMAGES, "transport", "method"), "{{transport}} {{method}}"),),
                "reqps",
                stack=True,
            ),
            Panel(
                "Requests by model",
                ((rate(IMAGES, "model"), "{{model}}"),),
                "reqps",
                stack=True,
            ),
            Panel(
                "Requests by answer",
                ((rate(IMAGES, "transport", "code"), "{{transport}} {{code}}"),),
                "reqps",
                stack=True,
            ),
            Panel(
                "Rejections by reason",
                ((rate("fcn_rejected_total", "reason"), "{{reason}}"),),
                "reqps",
            ),
            Panel(
                "Sizes of images",
                tuple(
                    (quantile(q, "fcn_image_pixels"), f"p{100 * q:g}") for q in (0.5, 0.95, 0.99)
                ),
                "short",
                text="Pixels of the uploads. The latency objective judges those up to "
                "FCN_LATENCY_TARGET_PIXELS.",
            ),
            Panel(
                "HTTP connections",
                (
                    ("sum(fcn_connections)", "open"),
                    (rate("fcn_connections_closed_total", "reason"), "ended a second: {{reason}}"),
                ),
            ),
        ],
        "Batches and queue": [
            Panel(
                "Queue",
                (
                    ("sum by (model) (fcn_queue_depth)", "waiting: {{model}}"),
                    ("sum(fcn_inflight_requests)", "admitted, not answered"),
                ),
            ),
            Panel("Batch size, on average", ((mean("fcn_batch_size", "model"), "{{model}}"),)),
            Panel(
                "Why batches close",
                ((rate("fcn_batches_total", "closed"), "{{closed}}"),),
                "ops",
                stack=True,
                text="alone: no other of that size waited. full: no room. late: one more would "
                "have missed a deadline. turn: an older image of another size was next. retry: "
                "after a failure.",
            ),
        ],
        "Models": [
            Panel(
                "Engine and precision of each version",
                (("fcn_model_info", ""),),
                kind="table",
                width=16,
            ),
            Panel(
                "What is wrong with versions",
                (
                    ("sum by (model) (fcn_model_load_failed)", "not loaded: {{model}}"),
                    ("sum by (model) (fcn_engine_fallback)", "engine stands in: {{model}}"),
                    ("sum by (model) (increase(fcn_stuck_runs_total[1h]))", "hung: {{model}}"),
                ),
            ),
        ],
        "Process": [
            Panel(
                "Memory",
                (
                    ("process_resident_memory_bytes", "{{instance}}"),
                    ("fcn_memory_limit_bytes", "{{instance}}: limit"),
                ),
                "bytes",
            ),
            Panel(
                "Cores in use",
                (
                    (f"rate(process_cpu_seconds_total{RATE})", "{{instance}}"),
                    (rate("fcn_compile_seconds_total", "instance"), "{{instance}}: compiling"),
                ),
            ),
            Panel(
                "Faults in an hour",
                (
                    (
                        "sum by (reason) (increase(fcn_decode_workers_lost_total[1h]))",
                        "decode process: {{reason}}",
                    ),
                    ("sum(increase(fcn_wrong_keys_total[1h]))", "wrong keys"),
                    ("sum(increase(fcn_log_lines_dropped_total[1h]))", "log lines lost"),
                    ("sum(changes(process_start_time_seconds[1h]))", "restarts"),
                ),
            ),
        ],
    }


def queries() -> list[tuple[str, str]]:
    """Lists the title of each panel with each of its queries."""
    return [
        (panel.title, query)
        for row in panels().values()
        for panel in row
        for query, _ in panel.queries
    ]


def dashboard() -> dict[str, Any]:
    """Makes what Grafana reads."""
    shown: list[dict[str, Any]] = []
    top = last = 0
    for title, row in panels().items():
        at = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        shown.append({"id": len(shown) + 1, "type": "row", "title": title, "gridPos": at})
        top, x = top + 1, 0
        for panel in row:
            height = 4 if panel.kind == "stat" else 8
            if x + panel.width > COLUMNS:
                top, x = top + last, 0
            at = {"x": x, "y": top, "w": panel.width, "h": height}
            shown.append({"id": len(shown) + 1, "gridPos": at, **_json(panel)})
            x, last = x + panel.width, height
        top += last
    return {
        "uid": "fcn-serve",
        "title": "FCN Serve",
        "description": "Made by `make monitoring` from tools/make_dashboard.py: change it there.",
        "tags": ["fcn"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
        },
        "panels": shown,
    }


def _json(panel: Panel) -> dict[str, Any]:
    whole = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "expr": query,
            "legendFormat": legend or "__auto",
            "instant": whole,
            "range": not whole,
            "exemplar": panel.kind == "heatmap",
            "format": {"heatmap": "heatmap", "table": "table"}.get(panel.kind, "time_series"),
        }
        for number, (query, legend) in enumerate(panel.queries)
    ]
    steps = [{"color": color, "value": value} for color, value in panel.steps]
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {"fillOpacity": 30 if panel.stack else 0, "showPoints": "never"}
        custom["stacking"] = {"mode": "normal" if panel.stack else "none"}
        if panel.limit is not None:
            steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.limit}]
            custom["thresholdsStyle"] = {"mode": "dashed"}
    defaults: dict[str, Any] = {"unit": panel.unit, "custom": custom}
    defaults["thresholds"] = {"mode": "absolute", "steps": steps}
    if panel.least is not None:
        defaults["min"] = panel.least
    dashed = {
        "matcher": {"id": "byName", "options": TARGET[1]},
        "properties": [
            {"id": "color", "value": {"mode": "fixed", "fixedColor": "red"}},
            {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
        ],
    }
    overrides = [dashed] if TARGET in panel.queries else []
    told = {
        "type": panel.kind,
        "title": panel.title,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "options": _OPTIONS[panel.kind],
    }
    if panel.text:
        told["description"] = panel.text
    if whole:  # the labels are columns; when it was scraped, and from where, says nothing
        hidden = dict.fromkeys(("Time", "Value", "__name__", "job"), True)
        told["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return told


_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "timeseries": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list"}},
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value"},
    "table": {"showHeader": True},
    "heatmap": {
        "calculate": False,
        "rowsFrame": {"layout": "le"},
        "yAxis": {"unit": "s"},
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "tooltip": {"mode": "single"},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
    },
}


def text() -> str:
    """Writes a panel a line."""
    head = dashboard()
    lines = ",\n".join(json.dumps(panel) for panel in head.pop("panels"))
    return f'{json.dumps(head)[:-1]}, "panels": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
