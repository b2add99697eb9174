"""The table covers every error, and nothing falls through to 500 by accident."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service import errors
from service.api.status import TABLE, retry_after_s, status_of


def all_errors(kind: type[errors.ServiceError] = errors.ServiceError) -> Iterator[type]:
    yield kind
    for each in kind.__subclasses__():
        yield from all_errors(each)


def test_every_error_has_a_row_of_its_own() -> None:
    ours = {kind for kind in all_errors() if kind.__module__.startswith("service.")}
    assert ours == set(TABLE)


def test_kinds_are_distinct() -> None:
    kinds = [row.kind for row in TABLE.values()]
    assert len(set(kinds)) == len(kinds)


def test_a_subclass_takes_its_bases_row() -> None:
    class Blurred(errors.InvalidImage):
        pass

    assert status_of(Blurred("x")) == TABLE[errors.InvalidImage]


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (errors.Overloaded(0.2), 1),
        (errors.Overloaded(2.1), 3),
        (errors.ShuttingDown(), 1),
        (errors.ModelNotReady("x"), 1),
        (errors.InvalidImage("x"), None),
        (errors.DeadlineExceeded("x"), None),
    ],
)
def test_retry_after(error: errors.ServiceError, seconds: int | None) -> None:
    assert retry_after_s(error) == seconds


def test_retryable_is_said_the_same_way_on_both_transports() -> None:
    # gRPC's own code for a message that is too large is that of an overload.
    rows = [row for error, row in TABLE.items() if error is not errors.MessageTooLarge]
    for row in rows:
        assert row.retry == (row.code.name in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"))
        assert row.retry == (row.http in (429, 503))


def test_what_counts_as_latency() -> None:
    """Timeouts and failures: neither the caller's mistakes nor refusals."""
    assert {row.http for row in TABLE.values() if row.counts_as_latency} == {500, 503, 504}
