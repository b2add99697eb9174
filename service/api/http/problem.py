"""Errors as `application/problem+json`. Source: RFC 9457."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.api.status import TYPE_PREFIX, headers_of, status_of
from service.errors import ServiceError
from service.telemetry import RequestRecord

MEDIA_TYPE = "application/problem+json"


def problem(
    status: int,
    title: str,
    detail: str,
    *,
    kind: str,
    record: RequestRecord,
    headers: dict[str, str] | None = None,
) -> Response:
    """The answer, and the error noted for the log. `kind` ends the problem's `type`."""
    record.error = f"{title}: {detail}"
    body = problem_body(status, title, detail, kind=kind, request_id=record.request_id)
    return Response(
        json.dumps(body).encode(), status_code=status, media_type=MEDIA_TYPE, headers=headers
    )


def problem_body(
    status: int, title: str, detail: str, *, kind: str, request_id: str
) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "type": TYPE_PREFIX + kind,
        "title": title,
        "status": status,
        "detail": detail,
        "instance": f"urn:fcn:request:{request_id}",
        "request_id": request_id,
    }


def service_problem(error: ServiceError, record: RequestRecord) -> Response:
    """A domain error by its row of the table."""
    row = status_of(error)
    return problem(
        row.http,
        error.title,
        str(error),
        kind=row.kind,
        record=record,
        headers=headers_of(error),
    )


def framework_problem(
    status: int, detail: str, record: RequestRecord, headers: dict[str, str] | None = None
) -> Response:
    """An error the framework found before any of our code ran: 404, 405, 422."""
    title = HTTPStatus(status).phrase
    kind = title.lower().replace(" ", "-")
    return problem(status, title, detail, kind=kind, record=record, headers=headers)


def record_of(request: Request) -> RequestRecord:
    """What the request's middleware put there."""
    record: RequestRecord = request.scope["fcn_record"]
    return record
