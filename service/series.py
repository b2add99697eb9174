"""Metrics as plain numbers of one thread, which prometheus_client asks for when it is scraped.

Its own counters and histograms take a lock and several calls for every observation, of which a
request has a dozen; here one is an addition or two. Collectors are its documented way to bring
numbers of one's own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]
"""Values, in the order of the names."""


class Counters(Collector):
    """How often something happened, by labels."""

    def __init__(
        self, name: str, help_text: str, names: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._described = name, help_text
        self._names = names
        self._counts: dict[Labels, int] = {}
        registry.register(self)

    def count(self, *labels: str) -> None:
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(*self._described, labels=self._names)
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        yield family


class Gauges(Collector):
    """What something is now, by labels. `set` may be called by any thread."""

    def __init__(
        self, name: str, help_text: str, names: Sequence[str], registry: CollectorRegistry
    ) -> None:
        """Without names it is 0 from the beginning."""
        self._described = name, help_text
        self._names = names
        self._values: dict[Labels, float] = {} if names else {(): 0}
        registry.register(self)

    def set(self, value: float, *labels: str) -> None:
        self._values[labels] = value

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(*self._described, labels=self._names)
        # A copy in one step, for a thread may add a series meanwhile.
        for labels, value in list(self._values.items()):
            family.add_metric(labels, value)
        yield family


class _Series:
    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0


class Histograms(Collector):
    """How many observations are up to each edge, and their sum, by labels."""

    def __init__(
        self,
        name: str,
        help_text: str,
        names: Sequence[str],
        edges: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """edges: ascending; an observation counts up to its own. Without names there is a series
        from the beginning."""
        self._described = name, help_text
        self._names = names
        self._edges = tuple(edges)
        self._edge_names = [*map(floatToGoString, self._edges), "+Inf"]
        self._series: dict[Labels, _Series] = {}
        if not names:
            self._series[()] = _Series(len(self._edge_names))
        registry.register(self)

    def observe(self, value: float, *labels: str) -> None:
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(len(self._edge_names))
        series.counts[bisect_left(self._edges, value)] += 1
        series.total += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(*self._described, labels=self._names)
        for labels, series in self._series.items():
            up_to, buckets = 0, []
            for edge, count in zip(self._edge_names, series.counts, strict=True):
                up_to += count
                buckets.append((edge, up_to))
            family.add_metric(labels, buckets, series.total)
        yield family
