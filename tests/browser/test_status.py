"""The page at /status says what /metrics says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import expect
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tests.browser.conftest import TARGET_S, Visit, opened
from tests.browser.test_page import IMAGE
from tests.drawing import png
from tests.serving import Server

ASKED = 5


@pytest.fixture
def status(wide: Visit, server: Server) -> Iterator[Visit]:
    """The page, of a server that answered images and refused what is none."""
    for _ in range(ASKED):
        server.rest.post("/segment", content=png(IMAGE)).raise_for_status()
    assert server.rest.post("/segment", content=b"no image").status_code == 415
    answered = 'fcn_request_duration_seconds_count{model="tiny",transport="rest"}'
    server.wait_for(answered, ASKED)
    with opened(wide, "/status") as seen:
        seen.page.wait_for_selector("#model-rows tr")
        yield seen


def test_it_says_what_the_metrics_say(status: Visit, server: Server) -> None:
    page = status.page
    series = 'fcn_request_duration_seconds_%s{%smodel="tiny",transport="rest"}'
    count = server.metric(series % ("count", ""))
    within = server.metric(series % ("bucket", f'le="{TARGET_S}",'))
    share = float(page.locator("#within").inner_text().removesuffix(" %"))
    assert share == pytest.approx(100 * within / count, abs=0.06)
    expect(page.locator("#target-ms")).to_have_text(f"{1000 * TARGET_S:.0f} ms")
    expect(page.locator("#rate-note")).to_have_text(f"{count:.0f} answered")
    expect(page.locator("#waiting")).to_have_text("0 waiting")
    stages = page.locator("#stage-rows th").all_inner_texts()
    assert stages == ["decode", "queue", "infer", "render"]
    assert all("ms" in text for text in page.locator("#stage-rows td").all_inner_texts())
    rows = page.locator("#model-rows tr").all_inner_texts()
    assert len(rows) == 3
    assert all("serves" in row and "fp32" in row for row in rows)
    queue = page.locator("#queue-rows tr", has_text="tiny").inner_text().split("\t")
    assert queue[:2] == ["tiny", "0"] and int(queue[2]) >= ASKED
    columns = page.locator("#latency div")
    edges = page.locator("#latency .edge").all_inner_texts()
    assert edges[0] == "5" and edges[-1] == "more" and str(int(1000 * TARGET_S)) in edges
    assert columns.count() == len(edges)
    expect(page.locator("#latency .last-in .edge")).to_have_text(f"{1000 * TARGET_S:.0f}")
    label = str(page.get_attribute("#latency", "aria-label"))
    assert re.search(rf"of {count:.0f} requests took up to {1000 * TARGET_S:.0f} ms", label)
    expect(page.locator("#process")).to_contain_text("MiB")


def test_it_goes_on_asking(status: Visit, server: Server) -> None:
    page = status.page
    before = page.locator("#rate-note").inner_text()
    page.select_option("#span", label="in the last minute")
    server.rest.post("/segment", content=png(IMAGE)).raise_for_status()
    expect(page.locator("#rate-note")).to_have_text("1 answered")
    expect(page.locator("#past polyline").first).to_be_attached()
    page.select_option("#span", label="since the server started")
    expect(page.locator("#rate-note")).not_to_have_text(before)


def test_a_silent_server_is_told(status: Visit) -> None:
    page = status.page
    page.route("**/metrics", lambda route: route.fulfill(status=503, body="no"))
    expect(page.get_by_role("alert")).to_contain_text("No figures since")
    expect(page.get_by_role("alert")).to_contain_text("it says 503")
    page.unroute_all()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_refusals_failures_and_stand_ins(status: Visit, server: Server) -> None:
    """The page shows them when there are some, which a healthy server does not have."""
    page = status.page
    text = server.rest.get("/metrics").text.replace(
        'fcn_rejected_total{reason="queue_full"} 0.0', 'fcn_rejected_total{reason="queue_full"} 7.0'
    )
    text = re.sub(
        r'(fcn_engine_fallback\{model="tiny",version="1",wanted=")[^"]*"\} 0.0',
        r'\1cuda"} 1.0',
        text,
    )
    text += 'fcn_model_load_failed{model="broken",version="4"} 1.0\n'
    page.route("**/metrics", lambda route: route.fulfill(body=text))
    expect(page.locator("#refused")).to_have_text("7")
    expect(page.locator("#reasons")).to_contain_text("queue full7")
    row = page.locator("#model-rows tr", has_text="broken")
    expect(row).to_contain_text("cannot be loaded")
    expect(page.locator("#model-rows")).to_contain_text("serves; cuda failed")
    page.unroute_all()


READ = """async text => {
  const { Metrics } = await import("/web/js/exposition.js");
  const { between, mean, quantile, shareWithin } = await import("/web/js/histogram.js");
  const metrics = new Metrics(text, 0);
  const all = metrics.histogram("took_seconds");
  const one = metrics.histogram("took_seconds", { model: "b" });
  const later = { ...all, counts: all.counts.map((count) => 2 * count), count: 2 * all.count };
  return {
    counts: all.counts.slice(0, -1), one: one.count, mean: mean(all), share: shareWithin(all, 0.2),
    half: quantile(all, 0.5), most: quantile(all, 1), none: quantile(metrics.histogram("no"), 0.5),
    between: between(later, all).counts.slice(0, -1),
    label: metrics.rows("odd")[0].labels.name, odd: metrics.sum("odd"),
    models: metrics.values("seen_total", "model"),
  };
}"""


def test_the_text_format_is_read(status: Visit) -> None:
    """Written by the library that the server writes it with."""
    registry = CollectorRegistry()
    histogram = Histogram(
        "took_seconds", "t", ["model"], registry=registry, buckets=(0.1, 0.2, 0.4)
    )
    times = {"a": [0.05, 0.15, 0.15, 0.3], "b": [0.35, 0.9]}
    for model, values in times.items():
        for value in values:
            histogram.labels(model).observe(value)
        Counter(f"seen_{model}", "s", registry=registry)
    seen = Counter("seen", "s", ["model"], registry=registry)
    seen.labels("b").inc()
    seen.labels("a").inc()
    odd = 'quote " brace } back \\ end\nnext'
    Gauge("odd", "o", ["name"], registry=registry).labels(odd).set(1.5)
    read = status.page.evaluate(READ, generate_latest(registry).decode())
    everything = np.concatenate(list(times.values()))
    assert read["counts"] == [1, 3, 5]
    assert read["one"] == 2
    assert read["mean"] == pytest.approx(everything.mean())
    assert read["share"] == 0.5
    assert read["half"] == pytest.approx(0.2), "the third of six is at the end of its bucket"
    assert read["most"] == pytest.approx(0.4), "beyond the last edge: that edge"
    assert read["none"] is None
    assert read["between"] == [1, 3, 5]
    assert (read["label"], read["odd"]) == (odd, 1.5)
    assert read["models"] == ["a", "b"]
