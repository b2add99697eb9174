"""Durations are measured by a clock that nobody sets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MOMENTS = {
    "service/api/oip/statistics.py",  # when a model was last asked, which the protocol wants
    "fcn_client/http_messages.py",  # Retry-After as a date
    "fcn_client/predict/live.py",  # frames of a camera are named by when they came
    "service/tls.py",  # a certificate ends on a day
    "service/checks.py",  # the same
    "service/tracing.py",  # where spans begin, for those who collect them
}
"""Modules that are told the time of day, or tell it."""
WALL = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\.(now|utcnow|today)\(")


@pytest.mark.parametrize("package", ["service", "fcn_client"])
def test_no_duration_is_measured_by_the_time_of_day(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in MOMENTS
        for line in path.read_text().splitlines()
        if WALL.search(line)
    ]
    assert found == []
