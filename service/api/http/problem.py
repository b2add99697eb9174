"""Errors over HTTP: `application/problem+json`, or, under /v2, the Open Inference Protocol's shape.

Source: RFC 9457; Open Inference Protocol, inference_rest.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import Response

from service.api.call import Outcome
from service.api.status import TYPE_PREFIX

MEDIA_TYPE: Final = "application/problem+json"
OIP_PREFIX: Final = "/v2"
CHALLENGE: Final = 'Bearer realm="fcn-serve"'
"""Goes with every 401. Source: RFC 6750, section 3."""


def error_response(
    outcome: Outcome, path: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Prints the outcome for a request to `path`."""
    found = dict(headers or {})
    if outcome.status.http == HTTPStatus.UNAUTHORIZED:
        found["WWW-Authenticate"] = CHALLENGE
    if outcome.wait_s is not None:
        found["Retry-After"] = str(outcome.wait_s)
    if path.startswith(OIP_PREFIX):
        document, media_type = {"error": outcome.detail}, "application/json"
    else:
        document, media_type = problem_document(outcome), MEDIA_TYPE
    return Response(json.dumps(document).encode(), outcome.status.http, found, media_type)


def problem_document(outcome: Outcome) -> dict[str, Any]:
    """Prints the outcome as RFC 9457 has it, JSON-ready."""
    return {
        "type": TYPE_PREFIX + outcome.status.kind,
        "title": outcome.title,
        "status": outcome.status.http,
        "detail": outcome.detail,
        "instance": f"urn:fcn:request:{outcome.request_id}",
        "request_id": outcome.request_id,
    }
