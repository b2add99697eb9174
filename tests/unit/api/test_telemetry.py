"""Log lines and histogram edges."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from service.core.types import Timings
from service.logs import JsonFormatter, TextFormatter
from service.telemetry import REJECTIONS, RequestRecord, Telemetry


@pytest.fixture
def record() -> RequestRecord:
    return RequestRecord(
        "rest", "Segment", "id-1", "504", model="m", error='late: "so\nlate"', timed=True
    )


def emitted(record: RequestRecord, caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    with caplog.at_level(logging.INFO, "fcn.request"):
        Telemetry(0.175).finished(record)
    (line,) = caplog.records
    return line


def test_text_line(record: RequestRecord, caplog: pytest.LogCaptureFixture) -> None:
    line = TextFormatter().format(emitted(record, caplog))
    assert " INFO fcn.request rest Segment 504 request_id=id-1 duration_ms=" in line
    assert "\n" not in line, "a caller must not be able to forge a line"
    assert line.endswith(r'error="late: \"so\nlate\""')


def test_json_line(record: RequestRecord, caplog: pytest.LogCaptureFixture) -> None:
    record.timings = Timings(0.001, 0.002, 0.003, 0.004)
    line = json.loads(JsonFormatter().format(emitted(record, caplog)))
    assert line["level"] == "info"
    assert line["code"] == "504"
    assert (line["decode_ms"], line["render_ms"]) == (1.0, 4.0)
    assert line["time"].endswith("Z")


def test_json_line_with_a_traceback() -> None:
    try:
        raise KeyError("x")
    except KeyError:
        record = logging.LogRecord("n", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "KeyError" in json.loads(line)["traceback"]


@pytest.mark.parametrize("target_s", [0.175, 0.042])
def test_the_target_is_an_edge(target_s: float) -> None:
    telemetry = Telemetry(target_s)
    telemetry.stage("m", "infer", 0.01)
    telemetry.finished(RequestRecord("grpc", "Segment", "i", "OK", model="m", timed=True))
    text = telemetry.scrape().decode()
    for edge in (0.175, target_s):
        assert f'fcn_stage_duration_seconds_bucket{{le="{edge}",model="m",stage="infer"}}' in text
        assert f'duration_seconds_bucket{{le="{edge}",model="m",transport="grpc"}}' in text
    assert f"fcn_latency_target_seconds {target_s}" in text


def test_probes_are_quiet(record: RequestRecord, caplog: pytest.LogCaptureFixture) -> None:
    record.probe = True
    with caplog.at_level(logging.INFO, "fcn.request"):
        Telemetry(0.175).finished(record)
    assert caplog.records == []


def test_rejections_are_there_before_the_first() -> None:
    text = Telemetry(0.175).scrape().decode()
    for reason in REJECTIONS:
        assert f'fcn_rejected_total{{reason="{reason}"}} 0.0' in text


def test_scrapes_hold_every_observation() -> None:
    telemetry = Telemetry(0.175)
    for _ in range(2):
        telemetry.rejected("overloaded")
        telemetry.batch("m", 3)
        telemetry.queue_depth("m", "1", 5)
        telemetry.queue_depth("m", "2", 0)
        telemetry.image_pixels(100)
    telemetry.inflight(4)
    lines = telemetry.scrape().decode().splitlines()
    for line in (
        'fcn_rejected_total{reason="overloaded"} 2.0',
        'fcn_batch_size_bucket{le="2.0",model="m"} 0.0',
        'fcn_batch_size_bucket{le="3.0",model="m"} 2.0',
        'fcn_queue_depth{model="m",version="1"} 5.0',
        'fcn_queue_depth{model="m",version="2"} 0.0',
        "fcn_image_pixels_sum 200.0",
        "fcn_inflight_requests 4.0",
    ):
        assert line in lines
    assert not [line for line in lines if "_created" in line]
