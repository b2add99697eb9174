"""Errors of the Open Inference Protocol over HTTP: `{"error": "..."}`."""

from __future__ import annotations

from typing import Final

from fastapi.responses import JSONResponse

from service.api.status import headers_of, status_of
from service.errors import ServiceError
from service.telemetry import RequestRecord

OIP_PREFIX: Final = "/v2"


def oip_error(
    status: int, message: str, record: RequestRecord, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The answer, and the error noted for the log."""
    record.error = message
    return JSONResponse({"error": message}, status_code=status, headers=headers)


def oip_service_error(error: ServiceError, record: RequestRecord) -> JSONResponse:
    """A domain error by its row of the table."""
    return oip_error(status_of(error).http, str(error), record, headers_of(error))
