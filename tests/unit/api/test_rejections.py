"""Deadlines and callers who leave are counted once for a request, whatever was under way for it."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest

from service.api.call import Calls
from service.errors import Cancelled, DeadlineExceeded, InferenceFailed, InvalidImage
from service.telemetry import Telemetry


def calls(telemetry: Telemetry) -> Calls:
    return Calls(telemetry, None, deadline_s=30.0, model_label=lambda name: "")


def rejections(telemetry: Telemetry) -> dict[str, float]:
    """Gives each reason of `fcn_rejected_total` that is not 0."""
    found = re.findall(
        r'^fcn_rejected_total{reason="(.*)"} (.*)$', telemetry.scrape().decode(), re.M
    )
    return {reason: float(count) for reason, count in found if float(count)}


@pytest.mark.parametrize(
    ("error", "left_s", "reasons"),
    [
        (DeadlineExceeded(), None, {"deadline": 1}),
        (asyncio.CancelledError(), 0.0, {"deadline": 1}),
        (asyncio.CancelledError(), 3.0, {"cancelled": 1}),
        (Cancelled(), None, {"cancelled": 1}),
        (InvalidImage("no"), None, {}),
        (InferenceFailed(), None, {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_deadlines_and_hang_ups_are_rejections(
    error: BaseException, left_s: float | None, reasons: dict[str, float]
) -> None:
    telemetry = Telemetry(0.175)
    call = calls(telemetry).begin("grpc", "Segment", time_left=lambda: left_s)
    with pytest.raises(type(error)), call:
        raise error
    assert rejections(telemetry) == reasons


def test_of_a_stream_each_message_is_a_rejection_and_the_stream_none() -> None:
    telemetry = Telemetry(0.175)
    stream = calls(telemetry).begin("grpc", "SegmentStream", time_left=lambda: 3.0)
    with pytest.raises(asyncio.CancelledError), stream:
        for error in (DeadlineExceeded(), asyncio.CancelledError()):
            with contextlib.suppress(type(error)), stream.part("Segment", "job/1"):
                raise error
        raise asyncio.CancelledError
    assert rejections(telemetry) == {"deadline": 1, "cancelled": 1}
