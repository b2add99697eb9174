"""Log lines and histogram edges."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from service.core.segmenter import Timings
from service.telemetry import JsonFormatter, RequestRecord, Telemetry, TextFormatter


@pytest.fixture
def record() -> RequestRecord:
    return RequestRecord(
        "rest", "Segment", "id-1", model="m", code="504", error='late: "so\nlate"', timed=True
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
    telemetry.finished(RequestRecord("grpc", "Segment", "i", model="m", code="OK", timed=True))
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
