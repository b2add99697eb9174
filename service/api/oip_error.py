"""Errors of the Open Inference Protocol over HTTP: `{"error": "..."}`."""

from __future__ import annotations

from typing import Final

from fastapi.responses import JSONResponse

from service.telemetry import RequestRecord

OIP_PREFIX: Final = "/v2"


def oip_error(
    status: int, message: str, record: RequestRecord, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The answer, and the error noted for the log."""
    record.error = message
    return JSONResponse({"error": message}, status_code=status, headers=headers)
