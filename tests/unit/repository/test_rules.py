"""The objectives and alerts of docker/prometheus/rules.yml, evaluated by promtool."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.conftest import need
from tests.unit.repository.pages import ROOT
from tools import make_dashboard
from tools.make_rules import FILE, alerts, rules, text
from tools.make_rules import Durations as Scaled

SERVER = 'instance="a",job="fcn"'
UP, START = f"up{{{SERVER}}}", f"process_start_time_seconds{{{SERVER}}}"
TARGET = f"fcn_latency_target_seconds{{{SERVER}}}"
LOADED = f'fcn_model_info{{{SERVER},model="m",version="1"}}'
OLD = {UP: "1x240", START: "-1000000x240", TARGET: "0.175x240"}
BOTH = {"FcnFailing/page", "FcnFailing/ticket"}


def images(good: str, bad: str, slo: str = "availability") -> dict[str, str]:
    return {
        f'fcn_slo_images_total{{{SERVER},model="m",slo="{slo}",result="{result}"}}': values
        for result, values in (("good", good), ("bad", bad))
    }


def one(name: str, values: str, **labels: str) -> dict[str, str]:
    more = "".join(f',{key}="{value}"' for key, value in labels.items())
    return {f"{name}{{{SERVER}{more}}}": values}


def born(minute: float) -> dict[str, str]:
    """A process that is first seen at its first scrape, some seconds after its start."""
    return {START: f"{60 * minute - 5:g}x240"}


REJECTED, STUCK = "fcn_rejected_total", "fcn_stuck_runs_total"
HUNG = {"model": "m", "outcome": "lost"}
FAILED = {"model": "m", "version": "2"}
EXPIRES = "fcn_tls_certificate_expiry_timestamp_seconds"

CASES: dict[str, tuple[dict[str, str], int, set[str]]] = {
    "all is well": (images("0+1000x240", "0x240"), 60, set()),
    "every answer is a failure": (images("0x240", "0+60x240"), 20, BOTH),
    "too few to wake anybody": (images("0x240", "0 9x240"), 20, set()),
    "no images": (images("5x240", "5x240"), 20, set()),
    "one in a hundred fails": (images("0+990x240", "0+10x240"), 60, BOTH),
    "two in a thousand": (images("0+998x240", "0+2x240"), 60, {"FcnFailing/ticket"}),
    "as many as may": (images("0+9995x240", "0+5x240"), 60, set()),
    "it failed, and works again": (
        images("0+100x240", "0+100x30 3000x210"),
        90,
        {"FcnFailing/ticket"},
    ),
    "a burst before the first scrape": (
        images("_x30 0x210", "_x30 50x210") | born(30),
        33,
        BOTH,
    ),
    "an old counter, seen for the first time": (images("_x30 0x210", "_x30 50x210"), 33, set()),
    "a fifth is slow": (
        images("0+80x240", "0+20x240", "latency"),
        20,
        {"FcnSlow/page", "FcnSlow/ticket"},
    ),
    "some are slow": (images("0+995x240", "0+5x240", "latency"), 60, set()),
    "it is down": ({UP: "0x240"}, 5, {"FcnDown/page"}),
    "it is no target": ({UP: "_x240"}, 5, {"FcnDown/page"}),
    "it starts again and again": ({START: "1x5 2x5 3x5 4x200"}, 20, {"FcnRestarts/page"}),
    "it was started anew": ({START: "1x5 2x200"}, 20, set()),
    "a model cannot be loaded": (
        one("fcn_model_load_failed", "1x240", **FAILED),
        10,
        {"FcnModelFailed/page"},
    ),
    "an older version serves": (
        one("fcn_model_load_failed", "1x240", **FAILED) | {LOADED: "1x240"},
        10,
        {"FcnModelFailed/ticket"},
    ),
    "all versions are loaded": (
        one("fcn_model_load_failed", "0x240", **FAILED) | {LOADED: "1x240"},
        10,
        set(),
    ),
    "a model vanishes": ({LOADED: "1x10 _x200"}, 30, {"FcnModelVanished/page"}),
    "the server is gone with its models": (
        {LOADED: "1x10 _x200", TARGET: "1x10 _x200", UP: "1x10 0x200"},
        30,
        {"FcnDown/page"},
    ),
    "a run hangs": (one(STUCK, "0x10 1x200", **HUNG), 15, {"FcnStuck/page"}),
    "a run hung long ago": (one(STUCK, "0x10 1x200", **HUNG), 40, set()),
    "one that hung before the first scrape": (
        one(STUCK, "_x10 1x200", **HUNG) | born(10),
        15,
        {"FcnStuck/page"},
    ),
    "one that hung before Prometheus came": (one(STUCK, "_x10 1x200", **HUNG), 15, set()),
    "requests are refused": (
        one(REJECTED, "0+6x240", reason="queue_full"),
        20,
        {"FcnOverloaded/ticket"},
    ),
    "a burst of refusals before the first scrape": (
        one(REJECTED, "_x10 100x200", reason="too_late") | born(10),
        12,
        {"FcnOverloaded/ticket"},
    ),
    "callers hang up and run out of time": (
        one(REJECTED, "0+60x240", reason="cancelled")
        | one(REJECTED, "0+60x240", reason="deadline"),
        20,
        set(),
    ),
    "a refusal a minute": (one(REJECTED, "0+1x240", reason="queue_full"), 20, set()),
    "the queue grows": (
        one("fcn_queue_depth", "0+2x240", model="m", version="1"),
        20,
        {"FcnQueueGrowth/ticket"},
    ),
    "a folder is sent, so many at a time": (
        one("fcn_queue_depth", "0x5 40x200", model="m", version="1"),
        10,
        set(),
    ),
    "an engine stands in": (
        one("fcn_engine_fallback", "1x240", model="m", wanted="openvino"),
        10,
        {"FcnEngineFallback/ticket"},
    ),
    "the engine that was wanted": (
        one("fcn_engine_fallback", "0x240", model="m", wanted="openvino"),
        10,
        set(),
    ),
    "it compiles": (one("fcn_compile_seconds_total", "0+30x240"), 40, {"FcnCompiling/ticket"}),
    "it compiled at the start": (one("fcn_compile_seconds_total", "0 60x240"), 40, set()),
    "memory runs out": (
        one("process_resident_memory_bytes", "95x240") | one("fcn_memory_limit_bytes", "100x240"),
        20,
        {"FcnMemory/ticket"},
    ),
    "there is memory": (
        one("process_resident_memory_bytes", "80x240") | one("fcn_memory_limit_bytes", "100x240"),
        20,
        set(),
    ),
    "the limit is not known": (
        one("process_resident_memory_bytes", "80x240") | one("fcn_memory_limit_bytes", "0x240"),
        20,
        set(),
    ),
    "decoders crash": (
        one("fcn_decode_workers_lost_total", "0 1 2 3x200", reason="crash"),
        10,
        {"FcnDecodeWorkers/ticket"},
    ),
    "two decoders were lost": (
        one("fcn_decode_workers_lost_total", "0 2x200", reason="hang"),
        10,
        set(),
    ),
    "keys are guessed": (
        one(REJECTED, "0+90x240", reason="unauthenticated"),
        20,
        {"FcnWrongKeys/ticket"},
    ),
    "a caller has an old key": (one(REJECTED, "0+6x240", reason="unauthenticated"), 20, set()),
    "the keys cannot be read": (one("fcn_keys_stale", "1x240"), 5, {"FcnKeysStale/page"}),
    "the keys are read": (one("fcn_keys_stale", "1x2 0x200"), 5, set()),
    "the certificate cannot be read": (
        one("fcn_tls_certificate_stale", "1x240"),
        5,
        {"FcnTlsCertificate/page"},
    ),
    "the certificate expires": (one(EXPIRES, "600000x240"), 5, {"FcnTlsCertificate/page"}),
    "the certificate is good": (one(EXPIRES, "2000000000x240"), 5, set()),
    "there is no TLS": (one(EXPIRES, "0x240"), 5, set()),
}


def promtool(*arguments: object) -> str:
    need(shutil.which("promtool") is not None, "promtool (apt-get install prometheus)")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES)
def test_alerts_fire_and_do_not_fire(case: str, tmp_path: Path) -> None:
    """Those that are named, and no other."""
    series, minute, firing = CASES[case]
    names = [name.split("/") for name in sorted(firing)]
    test = {
        "rule_files": [str(FILE)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values} for name, values in (OLD | series).items()
                ],
                "promql_expr_test": [
                    {
                        "expr": 'group by (alertname, severity) (ALERTS{alertstate="firing"})',
                        "eval_time": f"{minute}m",
                        "exp_samples": [
                            {"labels": f'{{alertname="{n}",severity="{s}"}}', "value": 1}
                            for n, s in names
                        ],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(test))
    assert promtool("test", "rules", path) == ""


def test_the_budget_that_is_left(tmp_path: Path) -> None:
    """Half is spent where half as many fail as may, and nothing where no image has come."""
    series = OLD | images("0+9995x240", "0+5x240") | images("0x240", "0x240", "latency")
    expected = [("availability", 0.5), ("latency", 1)]
    test = {
        "rule_files": [str(FILE)],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": n, "values": v} for n, v in series.items()],
                "promql_expr_test": [
                    {
                        "expr": "round(fcn:slo_budget_left:ratio, 0.001)",
                        "eval_time": "60m",
                        "exp_samples": [
                            {"labels": f'{{slo="{slo}"}}', "value": left} for slo, left in expected
                        ],
                    }
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(test))
    assert promtool("test", "rules", path) == ""


def test_every_alert_fires_and_stays_quiet_in_a_case() -> None:
    fired = set[str]().union(*(firing for _, _, firing in CASES.values()))
    assert fired == {f"{alert.name}/{alert.severity}" for alert in alerts(Scaled(1))}


def test_the_files_are_made_from_the_tables() -> None:
    told = "run `make monitoring`"
    assert FILE.read_text(encoding="utf-8") == text(rules()), told
    assert make_dashboard.FILE.read_text(encoding="utf-8") == make_dashboard.text(), told


def test_panels_do_not_overlap() -> None:
    taken = Counter(
        (x, y)
        for panel in make_dashboard.dashboard()["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    )
    assert set(taken.values()) == {1}
    assert max(x for x, _ in taken) < make_dashboard.COLUMNS


def test_alertmanager_takes_its_file() -> None:
    need(shutil.which("amtool") is not None, "amtool (apt-get install prometheus-alertmanager)")
    file = ROOT / "docker" / "alertmanager" / "alertmanager.yml"
    done = subprocess.run(["amtool", "check-config", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_prometheus_takes_its_files(tmp_path: Path) -> None:
    assert promtool("check", "config", FILE.with_name("prometheus.yml")) == ""
    scaled = tmp_path / "rules.yml"
    scaled.write_text(text(rules(0.01)))
    assert promtool("check", "rules", scaled) == ""


def test_every_alert_has_a_paragraph_in_the_runbook() -> None:
    """It is linked by its heading, and says what the alert means, what to look at, what to do."""
    page = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    parts = dict(re.findall(r"^## (Fcn\w+)\n(.*?)(?=^## |\Z)", page, re.M | re.S))
    assert set(parts) == {alert.name for alert in alerts(Scaled(1))}
    for name, part in parts.items():
        for word in ("**Means.**", "**Look.**", "**Do.**"):
            assert word in part, (name, word)
    for group in rules()["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                link = rule["annotations"]["runbook_url"]
                assert link == f"docs/runbook.md#{rule['alert'].lower()}"
