"""Writes what the Prometheus operator reads, from docker/prometheus: `make monitoring`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from tools.make_rules import ROOT, rules, text

CONFIG: Final = ROOT / "docker" / "prometheus" / "prometheus.yml"
FOLDER: Final = ROOT / "deploy" / "kubernetes" / "overlays" / "monitoring"
NAME_LABEL: Final = "app.kubernetes.io/name"


def rule() -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "fcn"},
        "spec": rules(),
    }


def monitor() -> dict[str, Any]:
    """Watches the pods behind the headless Service: behind the other one they are there twice."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    (scrape,) = config["scrape_configs"]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": scrape["job_name"]},
        "spec": {
            # The rules know the server by its job, which this label's value becomes.
            "jobLabel": NAME_LABEL,
            "selector": {"matchLabels": {NAME_LABEL: scrape["job_name"], "fcn/headless": "true"}},
            "endpoints": [{"port": "http", "interval": config["global"]["scrape_interval"]}],
        },
    }


def made() -> dict[Path, str]:
    """Returns the text of each file."""
    by = "tools/make_kubernetes.py"
    return {
        FOLDER / "prometheusrule.yaml": text(rule(), by),
        FOLDER / "servicemonitor.yaml": text(monitor(), by),
    }


if __name__ == "__main__":
    for path, content in made().items():
        path.write_text(content, encoding="utf-8")
