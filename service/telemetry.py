"""Tells operators how the service does: Prometheus metrics, and a log line for each request.

Metric names are fixed by docs/api.md; dashboards and alerts rely on them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import product
from typing import Literal, TypeVar, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from service.config import ApiConfig
from service.core.types import IndexEntry, ModelState, ModelStatus, Observer, Timings
from service.logs import STAGES, LogWriter, request_fields
from service.tracing import Attributes, Trace

REQUEST_BUCKETS_S = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175,
    0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
STAGE_BUCKETS_S = (0.0005, 0.001, 0.0025, *REQUEST_BUCKETS_S)
BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
REJECTIONS = (
    "overloaded", "queue_full", "too_late", "uploads", "deadline", "cancelled", "shutting_down",
    "unauthenticated", "guesses",
)  # fmt: skip
PIXEL_BUCKETS = tuple(2**n for n in range(14, 28))
CLOSED = ("alone", "full", "late", "turn", "retry")
CODES = {
    "rest": ("200", "429", "500", "503"),
    "grpc": ("OK", "RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE"),
}
"""Answers and failures of the service, by transport: what an alert may ask for."""
IMAGE_METHODS = ("Segment", "ModelInfer")
"""Each call of these is judged by the objectives; a stream's images are calls of their own."""

RequestOutcome = Literal["answered", "failed", "caller"]
"""Whose doing the end of a request is: `failed` is the service's, for want of room, too."""

Ending = Literal[
    "caller", "answered", "shutdown", "idle", "slow_head", "slow_body",
    "unread", "full", "refused", "bad_request", "failed", "tls",
]  # fmt: skip
"""Why an HTTP connection ended; docs/api.md explains each."""

M = TypeVar("M", bound=MetricWrapperBase)
_log = logging.getLogger("fcn.request")


@dataclass(slots=True)
class RequestRecord:
    """Holds what the log and the metrics say of one request; `api.call.Call` fills it in.

    transport: "rest" or "grpc". method: the operation's name, e.g. "Segment"; the same for both.
    code: the HTTP status or the gRPC code's name. model: "" until a known model is chosen. caller:
    the name that goes with the API key, "" where none is asked for. timed: the duration counts in
    the latency histogram. held: it is held to the latency target, if the image is not too large.
    pixels: of the uploads, as far as they were admitted. probe: not worth a log line. kind: of its
    error. stages: of each image, as far as it came. describe: what the transport says of it. trace:
    None where none is known.
    """

    transport: str
    method: str
    request_id: str
    code: str
    model: str = ""
    caller: str = ""
    error: str = ""
    kind: str = ""
    timed: bool = False
    held: bool = False
    outcome: RequestOutcome = "answered"
    pixels: int = 0
    probe: bool = False
    timings: Timings | None = None
    height: int = 0
    width: int = 0
    stages: list[Timings] = field(default_factory=list)
    describe: Callable[[], Attributes] | None = None
    trace: Trace | None = None
    began_s: float = field(default_factory=time.monotonic)
    received_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.received_s = self.began_s

    def restart(self) -> None:
        """Counts time from now: the upload is complete, its speed was the caller's."""
        self.began_s = time.monotonic()


class Telemetry(Observer):
    """Keeps the server's metrics, as the segmenter's observer and the transports tell it."""

    def __init__(
        self,
        latency_target_s: float,
        *,
        latency_target_pixels: int = ApiConfig.latency_target_pixels,
        memory_limit_bytes: int = 0,
    ) -> None:
        """latency_target_pixels: larger images are not held to the target. memory_limit_bytes: what
        this process may have; 0 if nobody asked."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when a series began: noise
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        target = {latency_target_s}
        self._target_s, self._target_pixels = latency_target_s, latency_target_pixels
        self._requests = _by_labels(
            counter(
                "fcn_requests_total",
                "Requests answered, by HTTP status or gRPC code.",
                ("transport", "method", "model", "code"),
            )
        )
        self._request_s = _by_labels(
            histogram(
                "fcn_request_duration_seconds",
                "Time from the complete upload to the answer; requests the caller got wrong and "
                "requests refused for load are left out.",
                ("transport", "model"),
                buckets=sorted(target.union(REQUEST_BUCKETS_S)),
            )
        )
        self._stage_s = _by_labels(
            histogram(
                "fcn_stage_duration_seconds",
                "Time in each stage of a request: decode, queue, infer, render.",
                ("stage", "model"),
                buckets=sorted(target.union(STAGE_BUCKETS_S)),
            )
        )
        self._batch_size = _by_labels(
            histogram(
                "fcn_batch_size", "Images in one inference.", ("model",), buckets=BATCH_BUCKETS
            )
        )
        self._queue_depth = _by_labels(
            gauge("fcn_queue_depth", "Images waiting for a model.", ("model", "version"))
        )
        self._rejected = _by_labels(
            counter("fcn_rejected_total", "Requests not served, by reason.", ("reason",))
        )
        self._stuck = _by_labels(
            counter(
                "fcn_stuck_runs_total",
                "Runs far longer than they may be, by what became of them.",
                ("model", "outcome"),
            )
        )
        for reason in REJECTIONS:  # at 0 from the start: an increase is seen from the first on
            self._rejected(reason)
        met = "Images by objective, availability or latency, and whether they met it."
        self._slo = _by_labels(counter("fcn_slo_images_total", met, ("slo", "model", "result")))
        why = "Batches, by why no more images were put into them."
        self._batches = _by_labels(counter("fcn_batches_total", why, ("model", "closed")))
        self._callers = _by_labels(
            counter(
                "fcn_caller_requests_total",
                "Requests let in by an API key, by the name that goes with it.",
                ("caller",),
            )
        )
        self._limited = _by_labels(
            counter(
                "fcn_limited_total",
                "Requests refused by a limit: requests, pixels or in_flight of a caller, by the "
                "name that goes with its key or anonymous; guesses: after wrong keys.",
                ("caller", "limit"),
            )
        )
        self._wrong_keys = counter("fcn_wrong_keys_total", "Keys offered that are nobody's.")
        lost = "Processes that ended, or took far too long, while they decoded an image."
        self._decoders_lost = counter("fcn_decode_workers_lost_total", lost, ("reason",)).labels
        for reason in ("crash", "hang"):
            self._decoders_lost(reason)
        self._keys_stale = gauge(
            "fcn_keys_stale",
            "1 while the file of API keys cannot be used, so that older keys stay in force.",
        )
        self._certificate_stale = gauge(
            "fcn_tls_certificate_stale",
            "1 while the files of the TLS certificate cannot be used, so that an older one stays.",
        )
        self._certificate_expires = gauge(
            "fcn_tls_certificate_expiry_timestamp_seconds",
            "When the TLS certificate in force expires, since the epoch; 0 without TLS.",
        )
        self._connections = gauge("fcn_connections", "Open HTTP connections.")
        self._connections_closed = _by_labels(
            counter("fcn_connections_closed_total", "HTTP connections ended, by why.", ("reason",))
        )
        for reason in get_args(Ending):
            self._connections_closed(reason)
        self._log_dropped = counter(
            "fcn_log_lines_dropped_total",
            "Log lines that nobody read, or that the disk did not take.",
        )
        self._log_dropped_before = 0
        self._inflight = gauge("fcn_inflight_requests", "Requests between admission and answer.")
        self._pixels = histogram(
            "fcn_image_pixels", "Height times width of the uploads.", buckets=PIXEL_BUCKETS
        )
        self._compile_s = counter(
            "fcn_compile_seconds_total", "Time spent compiling networks for sizes of images."
        )
        self._model_info = gauge(
            "fcn_model_info",
            "1 for each model version that is loaded.",
            ("model", "version", "precision", "provider", "engine"),
        )
        failed = "1 for each version that cannot be loaded, or of which a newer file cannot."
        self._load_failed = gauge("fcn_model_load_failed", failed, ("model", "version"))
        other = "1 for each version that runs on another engine than the one wanted, which failed."
        self._fallback = gauge("fcn_engine_fallback", other, ("model", "version", "wanted"))
        gauge("fcn_latency_target_seconds", "Time a request should take.").set(latency_target_s)
        pixels = "Larger images are not held to the latency target."
        gauge("fcn_latency_target_pixels", pixels).set(latency_target_pixels)
        gauge("fcn_memory_limit_bytes", "Memory that the server may have.").set(memory_limit_bytes)
        self._begin("")

    def _begin(self, model: str) -> None:
        """Has the model's counters at 0 before its first request: what comes before the second
        scrape would otherwise count as nothing."""
        for slo in ("availability", "latency"):
            for result in ("good", "bad"):
                self._slo(slo, model, result)
        if model:
            for outcome in ("ended", "lost"):
                self._stuck(model, outcome)
            for closed in CLOSED:
                self._batches(model, closed)
            for stage in STAGES:
                self._stage_s(stage, model)
            for transport, codes in CODES.items():
                self._request_s(transport, model)
                for method, code in product(IMAGE_METHODS, codes):
                    self._requests(transport, method, model, code)

    def scrape(self, *, openmetrics: bool = False) -> bytes:
        """Prints all metrics in the Prometheus text format, or as OpenMetrics with exemplars."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, LogWriter):
                self._log_dropped.inc(handler.dropped - self._log_dropped_before)
                self._log_dropped_before = handler.dropped
        return (generate_openmetrics if openmetrics else generate_latest)(self._registry)

    def finished(self, record: RequestRecord) -> None:
        """Counts and logs an answered request."""
        duration_s = time.monotonic() - record.began_s
        self._requests(record.transport, record.method, record.model, record.code).inc()
        if record.caller:
            self._callers(record.caller).inc()
        if record.timed:
            self._request_s(record.transport, record.model).observe(duration_s, _exemplar(record))
        if record.method in IMAGE_METHODS:
            self._judge(record, duration_s)
        level = logging.DEBUG if record.probe else logging.INFO
        if _log.isEnabledFor(level):
            _log.log(
                level,
                "%s %s %s",
                record.transport,
                record.method,
                record.code,
                extra={"fields": request_fields(record, duration_s)},
            )

    def _judge(self, record: RequestRecord, duration_s: float) -> None:
        """Counts an image for each objective that it is judged by.

        Callers who leave, or whose deadline passes, take nothing from the availability. If they
        waited longer than the target they say as much of the latency as a slow answer does.
        """
        if record.outcome != "caller":
            good = record.outcome == "answered"
            self._slo("availability", record.model, "good" if good else "bad").inc()
        slow = duration_s > self._target_s
        held = record.held and record.pixels <= self._target_pixels
        if held and (slow or record.outcome == "answered"):
            self._slo("latency", record.model, "bad" if slow else "good").inc()

    def loaded(self, models: Iterable[ModelStatus], index: Iterable[IndexEntry] = ()) -> None:
        """Publishes which versions are loaded, in place of what was published before.

        index: of all versions in the repository, those that cannot be loaded among them.
        """
        for gauge in (self._model_info, self._fallback, self._load_failed):
            gauge.clear()
        for model in models:
            self._begin(model.name)
            for v in model.versions:
                labels = model.name, v.version, v.precision, v.provider, v.engine
                self._model_info.labels(*labels).set(1)
                wanted = v.instead_of or v.engine
                self._fallback.labels(model.name, v.version, wanted).set(bool(v.instead_of))
        for entry in index:
            failed = entry.state is ModelState.FAILED or bool(entry.reason)
            self._load_failed.labels(entry.name, entry.version).set(failed)

    def stage(self, model: str, stage: str, seconds: float) -> None:
        self._stage_s(stage, model).observe(seconds)

    def batch(self, model: str, size: int, closed: str) -> None:
        self._batch_size(model).observe(size)
        self._batches(model, closed).inc()

    def queue_depth(self, model: str, version: str, n: int) -> None:
        self._queue_depth(model, version).set(n)

    def inflight(self, n: int) -> None:
        self._inflight.set(n)

    def rejected(self, reason: str) -> None:
        self._rejected(reason).inc()

    def limited(self, caller: str, limit: str) -> None:
        """Counts a request refused by a limit. caller: "" without a name."""
        self._limited(caller or "anonymous", limit).inc()

    def wrong_key(self) -> None:
        self._wrong_keys.inc()

    def decoder_lost(self, why: str) -> None:
        self._decoders_lost(why).inc()

    def keys_stale(self, stale: bool) -> None:
        self._keys_stale.set(stale)

    def certificate(self, expires_s: float | None) -> None:
        """Tells when the one in force expires; None: files in its place cannot be used."""
        self._certificate_stale.set(expires_s is None)
        if expires_s is not None:
            self._certificate_expires.set(expires_s)

    def compiled(self, seconds: float) -> None:
        self._compile_s.inc(seconds)

    def stuck(self, model: str, outcome: str) -> None:
        self._stuck(model, outcome).inc()

    def connections(self, n: int) -> None:
        self._connections.set(n)

    def connection_closed(self, why: Ending) -> None:
        self._connections_closed(why).inc()

    def image_pixels(self, n: int) -> None:
        self._pixels.observe(n)


def _by_labels(metric: M) -> Callable[..., M]:
    """Looks up a metric's series by its labels, each once: `labels` takes a lock and several calls,
    and a request asks for a dozen."""
    return lru_cache(maxsize=None)(metric.labels)


def _exemplar(record: RequestRecord) -> dict[str, str] | None:
    """Names the request behind an observation, or, where spans of it are exported, its trace; None
    for an id that is too long to be one.

    Source: OpenMetrics 1.0, Exemplars: 128 characters, the label's name among them.
    """
    if record.trace is not None and record.trace.span is not None:
        return {"trace_id": record.trace.trace_id, "span_id": record.trace.span_id}
    if len(record.request_id) > 128 - len("request_id"):
        return None
    return {"request_id": record.request_id}
