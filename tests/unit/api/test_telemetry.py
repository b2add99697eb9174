"""Log lines and histogram edges."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import pytest

from service.core.types import IndexEntry, ModelState, ModelStatus, Timings, VersionStatus
from service.logs import JsonFormatter, TextFormatter
from service.telemetry import REJECTIONS, RequestOutcome, RequestRecord, Telemetry
from tests.tiny_models import contract


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


def test_a_model_has_its_counters_before_the_first_image() -> None:
    telemetry = Telemetry(0.175)
    version = VersionStatus(
        "1", ModelState.READY, contract("m"), "cpu", Path("m"), "onnxruntime", "fp32", "openvino"
    )
    index = [
        IndexEntry("m", "1", ModelState.READY),
        IndexEntry("m", "2", ModelState.FAILED, "broken"),
    ]
    telemetry.loaded([ModelStatus("m", "1", (version,))], index)
    lines = telemetry.scrape().decode().splitlines()
    for line in (
        'fcn_slo_images_total{model="m",result="bad",slo="latency"} 0.0',
        'fcn_slo_images_total{model="",result="bad",slo="availability"} 0.0',
        'fcn_stuck_runs_total{model="m",outcome="lost"} 0.0',
        'fcn_batches_total{closed="late",model="m"} 0.0',
        'fcn_request_duration_seconds_count{model="m",transport="grpc"} 0.0',
        'fcn_decode_workers_lost_total{reason="hang"} 0.0',
        'fcn_requests_total{code="500",method="Segment",model="m",transport="rest"} 0.0',
        'fcn_engine_fallback{model="m",version="1",wanted="openvino"} 1.0',
        'fcn_model_load_failed{model="m",version="1"} 0.0',
        'fcn_model_load_failed{model="m",version="2"} 1.0',
    ):
        assert line in lines
    telemetry.loaded([], index[:1])
    assert 'version="2"' not in telemetry.scrape().decode()


@pytest.mark.parametrize(
    ("outcome", "pixels", "after_s", "availability", "latency"),
    [
        ("answered", 250_000, 0.0, "good", "good"),
        ("answered", 250_000, 1.0, "good", "bad"),
        ("answered", 250_001, 1.0, "good", None),
        ("failed", 1, 0.0, "bad", None),
        ("failed", 1, 1.0, "bad", "bad"),
        ("caller", 1, 0.0, None, None),
        ("caller", 1, 1.0, None, "bad"),
    ],
)
def test_what_the_objectives_count(
    outcome: RequestOutcome,
    pixels: int,
    after_s: float,
    availability: str | None,
    latency: str | None,
) -> None:
    telemetry = Telemetry(0.175)
    for method in ("Segment", "SegmentStream"):  # which is no image
        record = RequestRecord("rest", method, "id", "200", "m", held=True, outcome=outcome)
        record.pixels = pixels
        record.began_s -= after_s
        telemetry.finished(record)
    counted = re.findall(r'result="(\w+)",slo="(\w+)"} 1.0', telemetry.scrape().decode())
    wanted = {("availability", availability), ("latency", latency)}
    assert {(slo, result) for result, slo in counted} == {pair for pair in wanted if pair[1]}


@pytest.mark.parametrize(("request_id", "told"), [("n" * 118, True), ("n" * 119, False)])
def test_an_observation_names_its_request_where_openmetrics_is_asked_for(
    request_id: str, told: bool
) -> None:
    telemetry = Telemetry(0.175)
    telemetry.finished(RequestRecord("rest", "Segment", request_id, "200", timed=True))
    text = telemetry.scrape(openmetrics=True).decode()
    assert (f'# {{request_id="{request_id}"}}' in text) is told
    assert text.endswith("# EOF\n")
    assert " # {" not in telemetry.scrape().decode()


def test_scrapes_hold_every_observation() -> None:
    telemetry = Telemetry(0.175)
    for _ in range(2):
        telemetry.rejected("overloaded")
        telemetry.batch("m", 3, "full")
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
        'fcn_batches_total{closed="full",model="m"} 2.0',
    ):
        assert line in lines
    assert not [line for line in lines if "_created" in line]
