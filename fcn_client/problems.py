"""Makes the exception of what the server says is wrong: over HTTP, over gRPC and in a stream."""

from __future__ import annotations

import json
from typing import Any, Final

from fcn_client.errors import (
    KINDS,
    TYPE_PREFIX,
    DeadlineExceeded,
    FcnConnectionError,
    FcnError,
    FcnTimeoutError,
    ImageTooLarge,
    NotAllowed,
    NotAuthenticated,
    ServerError,
)
from fcn_client.trust import tls_hint

# A proxy's refusal has no kind; these are told from their status alone.
_ERROR_OF_STATUS: Final = {401: NotAuthenticated, 403: NotAllowed, 504: DeadlineExceeded}
_FAILED: Final = 500
_MAX_TEXT_BYTES: Final = 500
"""A text of so many bytes is a reason; what is longer is a page."""
_KIND_OF_TITLE: Final = {error.title: kind for kind, error in KINDS.items()}
# What gRPC's codes are over HTTP, for errors that did not come from our server's code.
_STATUS_OF_CODE: Final = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


def from_document(
    status: int, body: bytes, *, retry_after_s: float | None, request_id: str, reason: str = ""
) -> ServerError:
    """Reads an HTTP error; what a proxy answers is no problem document, and is taken too."""
    try:
        document = json.loads(body)
        fields = {name: str(document[name]) for name in ("type", "title", "detail")}
        fields["instance"] = str(document.get("instance", ""))
        fields["request_id"] = str(document.get("request_id", request_id))
    except (AttributeError, KeyError, TypeError, ValueError):
        title = f"HTTP {status} {reason}".rstrip()
        fields = {"type": "about:blank", "title": title, "request_id": request_id}
        if len(body) <= _MAX_TEXT_BYTES and not body.lstrip().startswith((b"<", b"{")):
            fields["detail"] = body.decode("utf-8", "replace").strip()
    return _server_error(status=status, retry_after_s=retry_after_s, **fields)


def from_status(
    code: str,
    text: str,
    *,
    kind: str = "",
    retry_after_s: float | None = None,
    no_retry: bool = False,
    request_id: str = "",
) -> FcnError:
    """Reads a gRPC status. code: its name. text: its message. kind: what its details say, without
    which the message's title tells: servers of version 0.1 send no details. no_retry: the server
    asked not to retry.
    """
    title, colon, detail = text.partition(": ")
    if not kind and colon:
        kind = _KIND_OF_TITLE.get(title, "")
    if not kind and code == "DEADLINE_EXCEEDED":
        return FcnTimeoutError("the time allowed ran out before the answer came: allow more")
    if not kind and code == "UNAVAILABLE":
        return unreachable("the server", _reason(text))
    if not kind and code == "RESOURCE_EXHAUSTED" and "larger than max" in text:
        # gRPC itself, before the server's code: the message will not shrink by waiting.
        kind, title, colon = ImageTooLarge.kind, ImageTooLarge.title, ": "
        detail = f"{text}: compress it more or scale it down"
    error = _server_error(
        type=TYPE_PREFIX + kind if kind else "about:blank",
        title=title,
        detail=detail if colon else "",
        status=_status(kind, code),
        instance=f"urn:fcn:request:{request_id}" if request_id else "",
        request_id=request_id,
        code=code,
        retry_after_s=retry_after_s,
    )
    error.retryable = error.retryable and not no_retry
    return error


def from_item(
    code: str, text: str, type: str, *, retry_after_s: float | None, request_id: str
) -> ServerError:
    """Reads the error of one image of a stream. type: the problem's. Without `retry_after_s`
    nothing is to be gained by sending the image again."""
    title, colon, detail = text.partition(": ")
    error = _server_error(
        type=type,
        title=title,
        detail=detail if colon else "",
        status=_status(type.removeprefix(TYPE_PREFIX), code),
        instance=f"urn:fcn:request:{request_id}",
        request_id=request_id,
        code=code,
        retry_after_s=retry_after_s,
    )
    error.retryable = error.retryable and retry_after_s is not None
    return error


def unreachable(server: str, reason: str) -> FcnConnectionError:
    """Makes the error of a connection that failed. One to a server that is not trusted, or the
    other way round, is not tried again."""
    hint = tls_hint(reason)
    if hint is None and reason.endswith("Socket closed"):
        reason += ": it may want TLS (grpcs://) or a client certificate (cert_file, key_file)"
    error = FcnConnectionError(
        f"cannot reach {server}: {reason}" if hint is None else f"{server}: {hint} ({reason})"
    )
    error.retryable = hint is None
    return error


def _status(kind: str, code: str) -> int:
    return KINDS[kind].status if kind in KINDS else _STATUS_OF_CODE.get(code, _FAILED)


def _server_error(*, type: str, status: int, **fields: Any) -> ServerError:
    """Makes the error; one of a kind that is not known here is a plain ServerError."""
    found = KINDS.get(type.removeprefix(TYPE_PREFIX)) or _ERROR_OF_STATUS.get(status, ServerError)
    error = found(type=type, status=status, **fields)
    # It is not the server's own, but of a proxy whose server died over the request: Ray's, say.
    error.retryable = error.retryable or (status == _FAILED and type == "about:blank")
    return error


def _reason(text: str) -> str:
    """Returns what is behind UNKNOWN in `failed to connect to all addresses; last error: UNKNOWN:
    ipv4:...: Connection refused`, which says it all."""
    return text.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
