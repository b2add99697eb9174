"""Tells the traces that requests belong to, and makes spans of them for OpenTelemetry.

Nothing is threaded through the core: it notes when each stage of an image began and ended, and the
spans are made of that when the request is over. OpenTelemetry is imported by `Tracing` alone.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from service.core.types import Timings
from service.errors import StartError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, SpanContext

    from service.telemetry import RequestRecord

PARENT: Final = "traceparent"
"""The header, or metadata, with the caller's trace. Source: W3C Trace Context, section 3.2."""
PROTOCOLS: Final = ("http/protobuf", "grpc")
FLUSH_S: Final = 3.0
"""Longest wait, at the end, for spans to be exported."""
SAID_EVERY_S: Final = 60.0
"""Between log lines about an exporter that fails."""
Attributes = Mapping[str, str | int | float | bool]

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
_ERRORS: Final = {
    *("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
}
"""Codes that are faults of a server. Source: OpenTelemetry, semantic conventions for gRPC."""


@dataclass(slots=True, frozen=True)
class Trace:
    """Names the trace that a request belongs to.

    span_id: of the request's own span; "" where none is made. span: None where none is exported.
    zero_ns: what has passed since the epoch at the moment 0 of the monotonic clock.
    """

    trace_id: str
    span_id: str = ""
    span: Span | None = None
    zero_ns: int = 0

    @property
    def mark(self) -> SpanContext | None:
        """Returns what a batch keeps of its members, to link them."""
        return None if self.span is None else self.span.get_span_context()


def trace_of_caller(traceparent: str | None) -> Trace | None:
    """Reads the caller's trace, where no spans are made; None without a valid one."""
    found = _PARENT.fullmatch(traceparent.strip()) if traceparent else None
    if found is None or found[1] == "ff" or (found[1] == "00" and found[4]):
        return None
    return Trace(found[2]) if int(found[2], 16) and int(found[3], 16) else None


class Tracing:
    """Makes spans of requests, and exports them on a thread of its own.

    The SDK reads its variables itself: OTEL_EXPORTER_OTLP_*, OTEL_TRACES_SAMPLER,
    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_* and others.
    """

    def __init__(self, protocol: str, exporter: SpanExporter | None = None) -> None:
        """protocol: one of `PROTOCOLS`. exporter: in place of its own. Raises: StartError."""
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            exporter = exporter or _exporter(protocol)
        except ModuleNotFoundError as error:
            raise StartError(
                f"FCN_TRACING=otlp: {error}: pip install 'fcn-serve[otel]', or unset FCN_TRACING"
            ) from error
        except ValueError as error:  # of a variable that the exporter reads
            raise StartError(f"FCN_TRACING=otlp: {error}: mend the OTEL_ variable") from error
        for kind in type(exporter).__mro__:
            logging.getLogger(kind.__module__).addFilter(_Seldom())
        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "fcn-serve"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("fcn-serve")
        self._api: Any = trace
        self._extract = TraceContextTextMapPropagator().extract

    def begin(self, carrier: Mapping[str, str], kind: str = "SERVER") -> Trace | None:
        """Begins a request's span. carrier: headers or metadata, by lower-case name."""
        context = self._extract(carrier) if PARENT in carrier else self._api.Context()
        return self._begin(context, kind)

    def part(self, whole: Trace | None) -> Trace | None:
        """Begins the span of a part of a request: one message of a stream."""
        if whole is None or whole.span is None:
            return whole
        return self._begin(self._api.set_span_in_context(whole.span), "INTERNAL")

    def _begin(self, context: Any, kind: str) -> Trace | None:
        zero_ns = time.time_ns() - time.monotonic_ns()
        span = self._tracer.start_span("request", context, self._api.SpanKind[kind])
        found = span.get_span_context()
        if not found.is_valid:  # OTEL_SDK_DISABLED
            return None
        trace_id, span_id = f"{found.trace_id:032x}", f"{found.span_id:016x}"
        return Trace(trace_id, span_id, span if span.is_recording() else None, zero_ns)

    def finished(self, record: RequestRecord) -> None:
        """Makes the spans of a request that is over. Probes get none; no request fails for them."""
        if record.trace is None or record.trace.span is None or record.probe:
            return
        try:
            self._make(record, record.trace, record.trace.span)
        except Exception:
            _log.exception("spans could not be made")

    def _make(self, record: RequestRecord, trace: Trace, span: Span) -> None:
        context = self._api.set_span_in_context(span)

        def child(name: str, began_s: float, ended_s: float, **more: Any) -> Span:
            began_ns = trace.zero_ns + round(1e9 * began_s)
            more.setdefault("context", context)
            made = self._tracer.start_span(name, start_time=began_ns, **more)
            made.end(trace.zero_ns + round(1e9 * max(began_s, ended_s)))
            return made

        if record.began_s > record.received_s:
            child("upload", record.received_s, record.began_s)
        for timings in record.stages:
            self._stages(timings, child)
        attributes = dict(record.describe() if record.describe else {}) | _attributes(record)
        name = f"{attributes.get('http.request.method', '')} {attributes.get('http.route', '')}"
        span.update_name(str(attributes.get("rpc.method") or name.strip() or record.method))
        span.set_attributes(attributes)
        if record.code in _ERRORS or record.code.startswith("5"):
            span.set_status(self._api.Status(self._api.StatusCode.ERROR, record.error or None))
        span.end()

    def _stages(self, timings: Timings, child: Callable[..., Span]) -> None:
        """Makes the spans of one image, as far as it came."""
        decoded_s = timings.began_s + timings.decode_s
        if timings.decode_s:
            child("decode", timings.began_s, decoded_s)
        if not timings.started_s:  # no instance took it
            if timings.queue_s:
                child("queue", decoded_s, decoded_s + timings.queue_s)
            return
        child("queue", max(decoded_s, timings.started_s - timings.queue_s), timings.started_s)
        ended_s = timings.ended_s or timings.started_s + timings.infer_s + timings.render_s
        rendered_s = ended_s - timings.render_s
        ran_s = min(timings.started_s + timings.infer_s, rendered_s)
        members = {mark.span_id: self._api.Link(mark) for mark in timings.marks if mark is not None}
        size = {"fcn.batch.size": max(1, len(timings.marks))}
        batch = child("batch", timings.started_s, ran_s, links=[*members.values()], attributes=size)
        inside = self._api.set_span_in_context(batch)
        child("infer", timings.started_s, ran_s, context=inside)
        child("encode", rendered_s, ended_s)

    def close(self, timeout_s: float = FLUSH_S) -> bool:
        """Exports what is left, and returns whether that was done in time."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(timeout_s)
        return not closing.is_alive()


def _exporter(protocol: str) -> SpanExporter:
    """Raises: StartError, ModuleNotFoundError, ValueError."""
    if protocol not in PROTOCOLS:
        raise StartError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r}: set one of {', '.join(PROTOCOLS)}"
        )
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http import trace_exporter

    return trace_exporter.OTLPSpanExporter()


def _attributes(record: RequestRecord) -> dict[str, str | int | float | bool]:
    """Lists what the log line says of a request, too."""
    found: dict[str, str | int | float | bool] = {
        "fcn.operation": record.method,
        "fcn.request_id": record.request_id,
        "fcn.outcome": record.outcome,
        "fcn.model": record.model,
        "fcn.caller": record.caller,
        "error.type": record.kind,
    }
    if record.transport == "rest":
        found["http.response.status_code"] = int(record.code)
    else:
        found["rpc.response.status_code"] = record.code
    if record.height:
        found |= {"fcn.image.height": record.height, "fcn.image.width": record.width}
    return {name: value for name, value in found.items() if value != ""}


class _Seldom(logging.Filter):
    """Passes one line a minute: an exporter that fails says so at each try."""

    _next_s = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if (now := time.monotonic()) < self._next_s:
            return False
        self._next_s = now + SAID_EVERY_S
        return True


_log = logging.getLogger("fcn.tracing")
_log.addFilter(_Seldom())
