"""Writes docker/prometheus/rules.yml, the objectives and the alerts: `make monitoring`.

Every threshold stands here, once. A test compares the file, another runs promtool on it, and a
third has a real Prometheus evaluate the same rules over windows a hundredth as long.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parent.parent
FILE: Final = ROOT / "docker" / "prometheus" / "rules.yml"

MAY_FAIL: Final = {"availability": 0.001, "latency": 0.01}
"""Share of the images that may miss each objective, over 30 days."""
WINDOWS: Final = ("5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d")
COUNTED: Final = WINDOWS[:5]
"""Windows over the server's own counters; longer ones average what is recorded of the first."""
BURNS: Final = (
    ("page", "5m", "1h", 14.4),
    ("page", "30m", "6h", 6.0),
    ("ticket", "2h", "1d", 3.0),
    ("ticket", "6h", "3d", 1.0),
)
"""Severity, the two windows, and how many times too fast the budget is spent in both.

Source: The Site Reliability Workbook, chapter 5, table 5-8."""
LEAST_BAD: Final = 10
"""Images in the shorter window that missed it: fewer wake nobody, whatever their share."""

LEAST_REFUSED: Final = 30
LEAST_WORKERS_LOST: Final = 3
LEAST_RESTARTS: Final = 3
LEAST_WAITING: Final = 8
WRONG_KEYS_S: Final = 1
COMPILING_SHARE: Final = 0.1
MEMORY_SHARE: Final = 0.9
CERTIFICATE_DAYS: Final = 7
OWN_LOAD: Final = "overloaded|queue_full|too_late|uploads"
"""Reasons of `fcn_rejected_total` that more room would mend; callers who leave are none."""

_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Alert:
    """Is one alert. lasts: how long its expression must hold; "" for at once."""

    name: str
    severity: str
    expr: str
    summary: str
    description: str
    lasts: str = ""


class Durations:
    """Writes durations, all of them a fraction as long where a test cannot wait."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, text: str) -> str:
        if self.scale == 1 or not text:
            return text
        return f"{round(1000 * self.seconds(text))}ms"

    def seconds(self, text: str) -> float:
        number, unit = re.fullmatch(r"(\d+)(\w+)", text).groups()  # type: ignore[union-attr]
        return int(number) * _UNITS[unit] * self.scale

    def increased(self, series: str, window: str) -> str:
        """Counts what a counter gained in the window, before its first scrape, too.

        `increase` begins at the first sample. A counter of a process that is younger than the
        window began at 0, so its value is what it gained; that of an older process, which
        Prometheus sees for the first time, says nothing of the window.
        """
        w, seconds = self(window), self.seconds(window)
        young = f"time() - process_start_time_seconds < {seconds:g}"
        return (
            f"((({series} unless {series} offset {w}) and on (instance, job) ({young}))\n"
            f"  or increase({series}[{w}]))"
        )


def objectives(d: Durations) -> list[dict[str, Any]]:
    """Records what each objective counted, the share that missed it, and the budget left."""
    bad, both = 'fcn_slo_images_total{result="bad"}', "fcn_slo_images_total"
    rules: list[dict[str, Any]] = []
    for w in COUNTED:
        for name, series in (("slo_images", both), ("slo_bad_images", bad)):
            expr = f"sum by (slo) {d.increased(series, w)}"
            rules.append({"record": f"fcn:{name}:increase{w}", "expr": expr})
    for w in WINDOWS:
        part, whole = f"fcn:slo_bad_images:increase{w}", f"fcn:slo_images:increase{w}"
        if w not in COUNTED:
            part = f"avg_over_time(fcn:slo_bad_images:increase5m[{d(w)}])"
            whole = f"avg_over_time(fcn:slo_images:increase5m[{d(w)}])"
        rules.append({"record": f"fcn:slo_error:ratio{w}", "expr": f"{part} / {whole}"})
    for slo, share in MAY_FAIL.items():
        missed = f'fcn:slo_error:ratio30d{{slo="{slo}"}}'
        # Without images it is 0 / 0, and nothing is spent.
        spent = f'({missed} >= 0 or 0 * fcn:slo_images:increase5m{{slo="{slo}"}})'
        rules.append(
            {
                "record": "fcn:slo_budget_left:ratio",
                "expr": f"1 - {spent} / {share:g}",
                "labels": {"slo": slo},
            }
        )
    return rules


def burns(slo: str, severity: str, d: Durations) -> str:
    """Says when the budget is spent too fast, over a short and a long window at once: the long one
    shows that it matters, the short one that it still goes on."""
    ways = []
    for kind, short, long, times in BURNS:
        if kind == severity:
            share = f"{times * MAY_FAIL[slo]:g}"
            ways.append(
                f'(fcn:slo_error:ratio{short}{{slo="{slo}"}} > {share}\n'
                f'  and fcn:slo_error:ratio{long}{{slo="{slo}"}} > {share}\n'
                f'  and fcn:slo_bad_images:increase{short}{{slo="{slo}"}} >= {LEAST_BAD})'
            )
    return "\nor ".join(ways)


def alerts(d: Durations) -> list[Alert]:
    rejected, depth = "fcn_rejected_total", "fcn_queue_depth"
    least = f"min_over_time({depth}[{d('2m')}])"
    served = "max by (instance, model) (fcn_model_info)"
    failed = "max by (instance, model, version) (fcn_model_load_failed)"
    found = [
        Alert(
            name,
            severity,
            burns(slo, severity, d),
            f"{what}: the {slo} budget of 30 days is spent too fast",
            f"{{{{ $value | humanizePercentage }}}} of the latest images missed it, and "
            f"{MAY_FAIL[slo]:.1%} may.",
        )
        for name, slo, what in (
            ("FcnFailing", "availability", "Images are not answered"),
            ("FcnSlow", "latency", "Images take longer than the target"),
        )
        for severity in ("page", "ticket")
    ]
    refused = d.increased(f'{rejected}{{reason=~"{OWN_LOAD}"}}', "10m")
    return [
        *found,
        Alert(
            "FcnDown",
            "page",
            'up{job="fcn"} == 0 or absent(up{job="fcn"})',
            "Prometheus cannot reach the server",
            "{{ with $labels.instance }}{{ . }}{{ else }}No server{{ end }} has answered /metrics "
            "for a minute: it is down, or no target.",
            "1m",
        ),
        Alert(
            "FcnRestarts",
            "page",
            f'changes(process_start_time_seconds{{job="fcn"}}[{d("30m")}]) >= {LEAST_RESTARTS}',
            "The server starts again and again",
            "{{ $labels.instance }} has started {{ $value }} times in half an hour.",
        ),
        Alert(
            "FcnModelFailed",
            "page",
            f"{failed} == 1 unless on (instance, model) {served}",
            "{{ $labels.model }} cannot be loaded, and no version of it serves",
            "Version {{ $labels.version }} on {{ $labels.instance }}; /v1/models has the reason.",
            "5m",
        ),
        Alert(
            "FcnModelFailed",
            "ticket",
            f"{failed} == 1 and on (instance, model) {served}",
            "A version of {{ $labels.model }} cannot be loaded",
            "Version {{ $labels.version }} on {{ $labels.instance }}; another serves, or its last "
            "good file. /v1/models has the reason.",
            "5m",
        ),
        Alert(
            "FcnModelVanished",
            "page",
            f"(max by (instance, model) (max_over_time(fcn_model_info[{d('1h')}]))\n"
            f"  unless {served})\n"
            "and on (instance) fcn_latency_target_seconds",
            "{{ $labels.model }} is not served any more",
            "{{ $labels.instance }} had it within the hour, and answers 404 now.",
            "5m",
        ),
        Alert(
            "FcnStuck",
            "page",
            f"sum by (model, outcome) {d.increased('fcn_stuck_runs_total', '10m')} > 0",
            "{{ $labels.model }}: a run of the network hung ({{ $labels.outcome }})",
            "Its images were answered 503; the log has their request ids.",
        ),
        Alert(
            "FcnOverloaded",
            "ticket",
            f"sum by (reason) {refused} >= {LEAST_REFUSED}",
            "The server turns requests away ({{ $labels.reason }})",
            '{{ printf "%.0f" $value }} requests were refused for want of room in ten minutes.',
        ),
        Alert(
            "FcnQueueGrowth",
            "ticket",
            f"{least} > max_over_time({depth}[{d('2m')}] offset {d('3m')})\n"
            f"and {least} >= {LEAST_WAITING}",
            "{{ $labels.model }}: images come faster than they are answered",
            "{{ $value }} images wait on {{ $labels.instance }}, and more every minute.",
            "6m",
        ),
        Alert(
            "FcnEngineFallback",
            "ticket",
            "max by (instance, model, wanted) (fcn_engine_fallback) == 1",
            "{{ $labels.model }} runs without {{ $labels.wanted }}",
            "It failed on {{ $labels.instance }}, and another serves; the log has the reason.",
            "5m",
        ),
        Alert(
            "FcnCompiling",
            "ticket",
            f"sum by (instance) (rate(fcn_compile_seconds_total[{d('15m')}])) > {COMPILING_SHARE}",
            "The server compiles all the time",
            "{{ $value | humanizePercentage }} of the time on {{ $labels.instance }}: images come "
            "in ever new sizes.",
            "15m",
        ),
        Alert(
            "FcnMemory",
            "ticket",
            f"process_resident_memory_bytes / (fcn_memory_limit_bytes > 0) > {MEMORY_SHARE}",
            "The server is about to run out of memory",
            "{{ $labels.instance }} has {{ $value | humanizePercentage }} of what it may have.",
            "10m",
        ),
        Alert(
            "FcnDecodeWorkers",
            "ticket",
            f"sum by (reason) {d.increased('fcn_decode_workers_lost_total', '15m')}"
            f" >= {LEAST_WORKERS_LOST}",
            "Images end the processes that decode them ({{ $labels.reason }})",
            '{{ printf "%.0f" $value }} in 15 minutes: somebody may be trying to break in.',
        ),
        Alert(
            "FcnWrongKeys",
            "ticket",
            f'sum(rate({rejected}{{reason="unauthenticated"}}[{d("5m")}])) > {WRONG_KEYS_S}',
            "Requests come without a valid API key",
            '{{ printf "%.1f" $value }} a second: a caller has an old one, or someone guesses.',
            "5m",
        ),
        Alert(
            "FcnKeysStale",
            "page",
            "fcn_keys_stale == 1",
            "The file of API keys cannot be used",
            "{{ $labels.instance }} goes on with older keys, revoked ones among them; its log says "
            "why.",
            "1m",
        ),
        Alert(
            "FcnTlsCertificate",
            "page",
            "fcn_tls_certificate_stale == 1\n"
            "or (fcn_tls_certificate_expiry_timestamp_seconds > 0) - time()"
            f" < {CERTIFICATE_DAYS} * 86400",
            "The TLS certificate is about to expire, or cannot be read",
            "{{ $labels.instance }} needs a new one; its log says why the files cannot be used.",
            "1m",
        ),
    ]


def rules(scale: float = 1) -> dict[str, Any]:
    """Makes the content of the file. scale: 1, or what all durations are multiplied with."""
    d = Durations(scale)
    told = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            **({"for": d(alert.lasts)} if alert.lasts else {}),
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": alert.summary,
                "description": alert.description,
                "runbook_url": f"docs/runbook.md#{alert.name.lower()}",
            },
        }
        for alert in alerts(d)
    ]
    return {
        "groups": [
            {"name": "fcn-objectives", "rules": objectives(d)},
            {"name": "fcn-alerts", "rules": told},
        ]
    }


class _Dumper(yaml.SafeDumper):
    """Writes expressions of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Dumper.add_representer(str, _text)


def text(content: dict[str, Any], made_by: str = "tools/make_rules.py") -> str:
    head = f"# Made by `make monitoring` from {made_by}: change it there.\n"
    return head + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


if __name__ == "__main__":
    FILE.write_text(text(rules()), encoding="utf-8")
