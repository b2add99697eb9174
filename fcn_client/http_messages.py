"""Turns the client's own types into requests of REST, and its replies back."""

from __future__ import annotations

import email.utils
import json
import math
import ssl
import time
from collections.abc import Mapping
from typing import Any, Final

import httpx

from fcn_client.errors import (
    DecodeError,
    FcnError,
    FcnTimeoutError,
    InvalidInput,
)
from fcn_client.problems import from_document, unreachable
from fcn_client.retry import GRACE_S
from fcn_client.trust import Trust
from fcn_client.types import Call, Model, ModelVersion, RawReply, Timings, classes_of

CONNECT_S: Final = 5.0
# Just below the 65 s after which the server closes an idle connection.
KEEP_ALIVE_S: Final = 55.0
LIMITS: Final = httpx.Limits(
    max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEEP_ALIVE_S
)


def no_streams(url: str) -> InvalidInput:
    return InvalidInput(
        f"{url} is REST, which has no streams: give the gRPC address, grpc://host:8001, or use "
        "segment_many"
    )


def context_of(trust: Trust) -> ssl.SSLContext:
    """Makes what verifies the server; by default with httpx's authorities."""
    if trust.ca is None:
        context = httpx.create_ssl_context()
    else:
        context = ssl.create_default_context(cafile=trust.files.get("ca_file"))
    trust.load_into(context)
    return context


def no_proxy(error: Exception) -> InvalidInput:
    return InvalidInput(
        f"the proxy that the environment names cannot be used: {error}: change http_proxy, "
        "https_proxy or all_proxy, or name the server in no_proxy"
    )


def segment_request(client: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
    query: list[tuple[str, str | int | float | bool | None]] = [("output", call.output)]
    query += [("classes", name) for name in call.classes]
    for name, value in (
        ("model", call.model),
        ("version", call.version),
        ("alpha", call.alpha),
        ("outlines", None if call.outlines is None else str(bool(call.outlines)).lower()),
        ("dtype", call.dtype),
        ("priority", call.priority),
        ("scale", call.scale),
    ):
        if value is not None:
            query.append((name, str(value)))
    if call.deadline_s is not None:
        query.append(("deadline_ms", str(max(1, math.floor(1000 * call.deadline_s)))))
    wait_s = call.timeout_s + GRACE_S
    return client.build_request(
        "POST",
        "segment",
        params=httpx.QueryParams(query),
        content=call.image,
        headers={"Content-Type": "application/octet-stream", "X-Request-ID": call.request_id},
        timeout=httpx.Timeout(wait_s, connect=min(wait_s, CONNECT_S)),
    )


def reply_of(response: httpx.Response, request_id: str) -> RawReply:
    """Reads an answer. Raises: ServerError for any status but 200."""
    headers = response.headers
    request_id = headers.get("X-Request-ID", request_id)
    if response.status_code != httpx.codes.OK:
        raise _refusal(response, request_id)
    return RawReply(
        body=response.content,
        media_type=headers.get("Content-Type", ""),
        model=headers.get("X-Model", ""),
        version=headers.get("X-Model-Version", ""),
        request_id=request_id,
        timings=timings_of(headers.get("Server-Timing", "")),
        network_size=_size(headers.get("X-Network-Size", "")),
    )


def _size(text: str) -> tuple[int, int] | None:
    """Reads `360x480`, height and width; None where it is none."""
    height, x, width = text.partition("x")
    return (int(height), int(width)) if x and height.isdigit() and width.isdigit() else None


def _refusal(response: httpx.Response, request_id: str) -> FcnError:
    return from_document(
        response.status_code,
        response.content,
        retry_after_s=retry_after_s(response.headers.get("Retry-After")),
        request_id=request_id,
        reason=response.reason_phrase,
    )


def failure(error: httpx.HTTPError, url: str) -> FcnError:
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return FcnTimeoutError(f"{url} did not answer in the time allowed ({reason}): allow more")
    return unreachable(url, reason)


def models_of(response: httpx.Response) -> tuple[Model, ...]:
    """Reads the list of models. Raises: ServerError, DecodeError."""
    if response.status_code != httpx.codes.OK:
        raise _refusal(response, response.headers.get("X-Request-ID", ""))
    try:
        return tuple(_model(entry) for entry in json.loads(response.content)["models"])
    except (KeyError, TypeError, ValueError) as error:
        raise DecodeError(f"{response.url} is no list of models: {error!r}") from error


def _model(entry: Mapping[str, Any]) -> Model:
    return Model(
        name=str(entry["name"]),
        is_default=bool(entry["is_default"]),
        default_version=str(entry["default_version"]),
        versions=tuple(
            ModelVersion(
                version=str(v["version"]),
                state=str(v["state"]),
                precision=str(v.get("precision", "")),
                provider=str(v.get("provider", "")),
                classes=classes_of(v["contract"]) if v.get("contract") else (),
                contract=v.get("contract") or {},
                engine=str(v.get("engine", "")),
            )
            for v in entry["versions"]
        ),
        description=str(entry.get("description", "")),
    )


def timings_of(server_timing: str) -> Timings:
    """Reads `decode;dur=1.20, queue;dur=0.01, ...` in milliseconds, passing over other stages.

    Source: W3C Server Timing.
    """
    seconds: dict[str, float] = {}
    for entry in server_timing.split(","):
        name, *options = (part.strip() for part in entry.split(";"))
        for option in options:
            key, _, value = option.partition("=")
            try:
                seconds[name] = float(value) / 1000 if key == "dur" else seconds.get(name, 0.0)
            except ValueError:
                continue
    return Timings(*(seconds.get(name, 0.0) for name in ("decode", "queue", "infer", "render")))


def retry_after_s(header: str | None, now_s: float | None = None) -> float | None:
    """Reads seconds from now: a number of them, or a date. None where the header is neither.

    Source: RFC 9110 section 10.2.3.
    """
    if not header:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        at_s = email.utils.parsedate_to_datetime(header).timestamp()
    except ValueError:
        return None
    return max(0.0, at_s - (time.time() if now_s is None else now_s))
