"""Turns, summaries, and what several generators or rounds make together."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import generator, record, versus
from bench.turns import order, take_turns


def test_turns_count_calls_and_images() -> None:
    calls: list[str] = []

    def call(name: str) -> None:
        calls.append(name)
        time.sleep(0.002)

    contenders = {name: partial(call, name) for name in "ab"}
    found = take_turns(contenders, 2, images=4)
    # One each to allocate; then in each round one to warm up and one that counts.
    assert "".join(calls) == "ab" + "aabb" + "bbaa"
    for row in found.values():
        assert row["count"] == 2
        assert row["images_per_s"] == pytest.approx(4e3 / row["mean_ms"], rel=0.1)


def test_a_slot_counts_calls_until_it_is_over() -> None:
    calls: list[int] = []
    found = take_turns({"a": lambda: calls.append(0)}, 1, slot_s=0.1)
    assert found["a"]["count"] == len(calls) - 2 > 10


def test_who_goes_first_changes() -> None:
    assert [order("abc", turn) for turn in (0, 1, 2)] == [list("abc"), list("cba"), list("abc")]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_percentiles_are_numpys(count: int) -> None:
    seconds = np.random.default_rng(count).exponential(0.1, count)
    found = record.summary(list(seconds))
    for percent in (50, 95, 99):
        expected = np.percentile(seconds * 1e3, percent)
        assert found[f"p{percent}_ms"] == pytest.approx(expected, abs=0.001)
    assert found["min_ms"] == pytest.approx(seconds.min() * 1e3, abs=0.001)
    assert found["count"] == count


def test_nothing_has_no_percentiles() -> None:
    assert record.summary([]) == {"p50_ms": None, "p95_ms": None, "p99_ms": None,
                                  "mean_ms": None, "min_ms": None, "count": 0}  # fmt: skip


def load_of(latencies: list[float], refusals: list[float], seconds: float) -> dict[str, Any]:
    """Prints, as bench.load does, so many answers."""
    counts = dict.fromkeys(("late", "expired", "hung_up", "other_errors"), 0)
    rate = len(latencies) / seconds
    return {
        **counts, "answered": len(latencies), "refused": len(refusals),
        "refusals_with_retry_after": len(refusals), "offered_per_s": rate,
        "answered_per_s": rate, "goodput_per_s": rate, "latencies_ms": latencies,
        "refusals_ms": refusals, "stages_ms": {"infer": latencies}, "lag_p99_ms": 1.0,
        "generator_share": 0.01, "cpu_ms": 14.0,
        "latency": record.summary([ms / 1e3 for ms in latencies]),
        "refusal": record.summary([ms / 1e3 for ms in refusals]),
    }  # fmt: skip


def test_several_generators_are_one_load() -> None:
    found = generator.merged([load_of([1.0, 2.0], [], 2), load_of([30.0], [0.5], 2)])
    assert (found["answered"], found["answered_per_s"], found["generators"]) == (3, 1.5, 2)
    assert found["latency"]["p50_ms"] == found["stages"]["infer"]["p50_ms"] == 2.0
    assert (found["refused"], found["refusal"]["p50_ms"]) == (1, 0.5)
    assert found["generator_share"] == 0.02


def test_rounds_are_pooled() -> None:
    found = generator.pooled([load_of([1.0], [], 1), load_of([2.0, 3.0, 4.0], [], 1)])
    assert (found["answered"], found["answered_per_s"]) == (4, 2.0)
    assert found["latency"]["p50_ms"] == 2.5
    assert found["generator_share"] == 0.01
    assert not [name for name in generator.without_lists(found) if name.endswith("s_ms")]


def test_a_generator_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)bench\.load failed: .*nowhere\.jpg"):
        generator.closed("http://127.0.0.1:9", tmp_path / "nowhere.jpg", 1, 0.1)


def test_versus_compares_within_a_round() -> None:
    rounds = {
        "before": [load_of([10.0] * 10, [], 1), load_of([20.0] * 5, [], 1)],
        "after": [load_of([5.0] * 20, [], 1), load_of([20.0] * 4, [], 1)],
    }
    found = versus.row("8 connections", rounds, [20.0, 10.0])
    ratios = found["after_of_before"]
    assert ratios["images_per_s"] == {"median": 1.4, "least": 0.8, "largest": 2.0}
    assert ratios["p99_ms"] == {"median": 0.75, "least": 0.5, "largest": 1.0}
    assert found["before"]["of_limit"]["median"] == 0.5
    # Nobody was refused: there is no ratio of how long that took.
    for each in (*rounds["before"], *rounds["after"]):
        each["recovery_s"] = 0.1
    found = versus.row("3x", rounds, [20.0, 10.0])
    assert found["after_of_before"]["refusal_p99_ms"] is None
    assert found["after"]["recovery_s"] == 0.1
