"""Writes log lines to stderr, as text or JSON, by a thread that nobody has to wait for."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from service.telemetry import RequestRecord

STDERR: Final = 2
STAGES: Final = ("decode", "queue", "infer", "render")
FLUSH_S: Final = 1.0
"""Longest wait, at the end, for log lines to be written."""


class TextFormatter(logging.Formatter):
    """Prints `2026-01-02 03:04:05,678 INFO fcn.request rest Segment 200 request_id=… …`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        fields = getattr(record, "fields", {})
        said = ("transport", "method", "code")
        extra = (f"{k}={_plain(v)}" for k, v in fields.items() if k not in said)
        return " ".join((line, *extra))


class JsonFormatter(logging.Formatter):
    """Prints one JSON object per line; times are UTC."""

    def __init__(self) -> None:
        super().__init__()
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def request_fields(record: RequestRecord, duration_s: float) -> dict[str, object]:
    """Lists what the line of a request says besides its message; absent facts are left out.

    caller: the name that goes with the key, never the key. Nothing of the image but its size.
    """
    fields: dict[str, object] = {
        "transport": record.transport,
        "method": record.method,
        "code": record.code,
        "request_id": record.request_id,
        "duration_ms": round(1000 * duration_s, 2),
        "outcome": record.outcome,
    }
    if record.trace is not None:
        fields["trace_id"] = record.trace.trace_id
        if record.trace.span is not None:  # else the trace has no such span
            fields["span_id"] = record.trace.span_id
    for name in ("model", "caller", "height", "width", "kind", "error"):
        if value := getattr(record, name):
            fields[name] = value
    timings = record.timings or next(iter(record.stages), None)
    if timings is not None:
        for stage in STAGES:
            seconds = getattr(timings, f"{stage}_s")
            fields[f"{stage}_ms"] = round(1000 * seconds, 2)
    return fields


def _plain(value: object) -> str:
    """Prints a value in a text line, quoted when it has spaces, so that lines can be split."""
    text = str(value)
    return json.dumps(text) if not text or any(c in text for c in ' "=\n\r') else text


class LogWriter(logging.Handler):
    """Has a thread write the lines: a reader who stops, or a full disk, must not stop the server.

    What the thread does not come to in time is dropped and counted, and a line tells how much.
    """

    def __init__(self, descriptor: int, max_lines: int = 10_000) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(max_lines)
        self.dropped = 0
        self._told = 0
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record) + "\n")
        except queue.Full:
            self.dropped += 1

    def flush(self) -> None:
        """Waits until all is written, but not for a reader who has stopped."""
        ends_s = time.monotonic() + FLUSH_S
        while self._lines.unfinished_tasks and time.monotonic() < ends_s:
            time.sleep(0.005)

    def _write_all(self) -> None:
        while True:
            lines = [self._lines.get()]
            with contextlib.suppress(queue.Empty):
                while len(lines) < 100:
                    lines.append(self._lines.get_nowait())
            count = len(lines)
            if dropped := self.dropped - self._told:
                text = f"{dropped} log lines were dropped: nobody read them, or the disk is full"
                record = logging.getLogger("fcn.log").makeRecord(
                    "fcn.log", logging.WARNING, "", 0, text, (), None
                )
                lines.append(self.format(record) + "\n")
            left = "".join(lines).encode("utf-8", "backslashreplace")
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
                self._told += dropped
            except OSError:
                self.dropped += count
            for _ in range(count):
                self._lines.task_done()


def configure_logging(level: str, style: str) -> None:
    """Sends all log lines to stderr, as `text` or `json`; called once, by the app."""
    handler = LogWriter(STDERR)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    # Its start and stop lines would only repeat what the app says.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
