"""Joins what several processes say of themselves to Prometheus into one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def joined(pages: Mapping[str, str], label: str) -> bytes:
    """Prints every series of every page, under the same name and with one label more.

    pages: in Prometheus' text format, by the value of that label.
    """
    registry = CollectorRegistry()
    registry.register(_Pages(pages, label))
    return generate_latest(registry)


class _Pages(Collector):
    """Collects from pages, one family of each name."""

    def __init__(self, pages: Mapping[str, str], label: str) -> None:
        self._pages = pages
        self._label = label

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for value, page in self._pages.items():
            for family in text_string_to_metric_families(page):
                found = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                found.samples += [
                    sample._replace(labels={self._label: value, **sample.labels})
                    for sample in family.samples
                ]
        yield from families.values()
