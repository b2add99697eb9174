"""`fcn scale`: the simulation keeps to queueing theory, and the arithmetic to its table."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from bench.record import RESULTS
from cli._scale import load_table, reckon
from cli._simulation import (
    BALANCERS,
    Replica,
    latencies_s,
    p99_s,
    percentile,
    replicas_for,
)
from cli.main import main

EVEN = Replica(1, [10.0])
UNEVEN = Replica(1, [5.0, 10.0, 15.0])


@pytest.mark.parametrize("busy", [0.3, 0.7, 0.9])
def test_one_replica_is_a_queue_of_constant_times(busy: float) -> None:
    """Its mean, by Pollaczek and Khinchine: s + busy * s / (2 * (1 - busy))."""
    found = latencies_s(EVEN, 1, 100 * busy, "random", images=100_000)
    assert statistics.fmean(found) == pytest.approx(0.01 * (1 + busy / (2 * (1 - busy))), rel=0.05)


def test_slots_work_side_by_side() -> None:
    two = Replica(2, [10.0])
    assert two.images_per_s == 200
    # Behind one queue they do better than two replicas that are chosen by chance.
    assert p99_s(two, 1, 160, "random") < p99_s(EVEN, 2, 160, "random")


def test_a_replica_does_what_its_times_allow() -> None:
    assert UNEVEN.images_per_s == pytest.approx(100)
    assert statistics.fmean(latencies_s(UNEVEN, 1, 1, "random")) == pytest.approx(0.01, rel=0.03)


def test_who_looks_at_more_queues_waits_less() -> None:
    found = [p99_s(UNEVEN, 10, 900, balancer) for balancer in BALANCERS]
    assert found == sorted(found, reverse=True)
    assert found[0] > 2 * found[1] > 2 * found[2]


@pytest.mark.parametrize("balancer", BALANCERS)
def test_the_fewest_replicas_are_found(balancer: str) -> None:
    count = replicas_for(UNEVEN, 550, 0.04, balancer)
    assert count is not None
    assert p99_s(UNEVEN, count, 550, balancer) <= 0.04
    assert count == 6 or p99_s(UNEVEN, count - 1, 550, balancer) > 0.04


def test_no_number_of_replicas_makes_one_image_faster() -> None:
    assert replicas_for(UNEVEN, 100, 0.004, "least-loaded") is None


TABLE = """
[load]
peak = 2
target_ms = 1000
most_busy = 0.5
spare = 1
[replica]
cores = 4
service_ms = [10.0]
[reply_kb]
mine = 50
[gpu]
images_per_s = 500
cores = 0
[store]
days = 30
[network]
node_cores = 16
[price]
core_hour = 0.1
gpu_hour = 1
egress_gb = 0.1
storage_gb_month = 0.01
"""


def test_the_arithmetic(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TABLE)
    found = reckon(load_table(path), 8_640_000, 100.0, "mine")
    assert found["images_per_s"] == {"mean": 100, "peak": 200}
    assert found["replicas"] == 5  # 200 images/s, 50 each at most, and a spare
    assert (found["cores"], found["nodes"], found["gpus"]) == (20, 2, 2)
    assert found["gbit_per_s"] == pytest.approx({"in": 0.16, "out": 0.08})
    assert found["node_network_busy"] == pytest.approx(0.008)
    assert found["stored_gb"] == pytest.approx(38880)
    cost = {"cores": 48.0, "egress": 43.2, "storage": 12.96}
    assert found["price_per_day"] == pytest.approx(cost)
    assert found["price_per_million"] == pytest.approx(sum(cost.values()) / 8.64)
    assert found["gpu_price_per_million"] == pytest.approx((48 + 43.2 + 12.96) / 8.64)


def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["scale", "--images-per-day", "1e7", "--image-kb", "60"]
    assert main(words) == 0
    text = capsys.readouterr().out
    for part in ("least-loaded:", "p99", "cores", "Gbit/s", "per million images", "assumed prices"):
        assert part in text
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["balancers"]) == set(BALANCERS)
    assert found["balancers"]["least-loaded"]["p99_ms"] <= 175


@pytest.mark.parametrize(
    ("table", "words", "says"),
    [
        ("", ["--images-per-day", "0"], "give numbers above 0"),
        ("", ["--image-kb", "nan"], "give numbers above 0"),
        ("", ["--images-per-day", "inf"], "give numbers above 0"),
        ("", ["--output", "film"], "[reply_kb] has no 'film': use label_map"),
        ("[load", [], "is no TOML"),
        ("[loads]\n", [], "there is no [loads]: use load, replica"),
        ("load = 1\n", [], "there is no [load]"),
        ("[load]\npeaks = 2\n", [], "[load] has no peaks: use peak"),
        ("[load]\npeak = 0\n", [], "peak of [load] is 0"),
        ("[load]\npeak = true\n", [], "peak of [load] is True"),
        ("[replica]\nslots = 1.5\n", [], "slots of [replica] is 1.5"),
        ("[replica]\nservice_ms = []\n", [], "service_ms of [replica] is []"),
        ("[replica]\nservice_ms = [2.0, 1.0]\n", [], "service_ms is not in order"),
        ("[load]\ntarget_ms = 1\n", [], "one image alone takes up to"),
        (None, [], "cannot be read: No such file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    table: str | None,
    words: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "mine.toml"
    if table is not None:
        path.write_text(table)
    given = ["scale", "--images-per-day", "1000", "--image-kb", "60", "--table", str(path), *words]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_the_table_has_what_was_measured() -> None:
    found: dict[str, Any] = json.loads((RESULTS / "limit.json").read_text())
    (row,) = (
        way["latency"]
        for way in found["ways"]
        if (way["engine"], way["precision"], way["threads"]) == ("onnxruntime", "int8", 1)
    )
    service_ms = load_table(None)["replica"]["service_ms"]
    assert service_ms == [round(row[name], 1) for name in ("min_ms", "p50_ms", "p99_ms")]
    assert 1000 / Replica(1, service_ms).images_per_s == pytest.approx(row["mean_ms"], rel=0.01)


@pytest.mark.parametrize("percent", [0, 50, 99, 100])
def test_percentiles_are_values(percent: int) -> None:
    values = [float(n) for n in range(101)]
    assert percentile(values, percent) == pytest.approx(percent, abs=1)
