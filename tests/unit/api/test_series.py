"""Our numbers are scraped as prometheus_client's own would be."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.series import Counters, Gauges, Histograms

EDGES = (0.001, 0.25, 1.0, 16384.0)
LABELS = st.sampled_from([("decode", "m"), ("infer", "m"), ("infer", 'a "name"\n')])
VALUES = st.sampled_from([*EDGES, 0.0, 0.0005, 0.3, 17.0, 1e6])


def text(registry: CollectorRegistry) -> str:
    """Less the times of birth, for which nothing here asks."""
    lines = generate_latest(registry).decode().splitlines(keepends=True)
    return "".join(line for line in lines if not re.search(r"_created\b", line))


@given(st.lists(st.tuples(VALUES, LABELS)), st.lists(VALUES))
def test_the_text_of_a_scrape(
    labelled: list[tuple[float, tuple[str, str]]], plain: list[float]
) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    names = ("stage", "model")

    counter = Counter("c_total", "Some.", names, registry=theirs)
    gauge = Gauge("g", "Now.", names, registry=theirs)
    lone = Gauge("l", "Now, of one.", registry=theirs)
    histogram = Histogram("h", "All.", names, registry=theirs, buckets=EDGES)
    whole = Histogram("w", "All of one.", registry=theirs, buckets=EDGES)

    counters = Counters("c_total", "Some.", names, ours)
    gauges = Gauges("g", "Now.", names, ours)
    lone_gauge = Gauges("l", "Now, of one.", (), ours)
    histograms = Histograms("h", "All.", names, EDGES, ours)
    lone_histogram = Histograms("w", "All of one.", (), EDGES, ours)

    assert text(ours) == text(theirs)
    for value, labels in labelled:
        counter.labels(*labels).inc()
        counters.count(*labels)
        gauge.labels(*labels).set(value)
        gauges.set(value, *labels)
        histogram.labels(*labels).observe(value)
        histograms.observe(value, *labels)
    for value in plain:
        lone.set(value)
        lone_gauge.set(value)
        whole.observe(value)
        lone_histogram.observe(value)
    assert text(ours) == text(theirs)
