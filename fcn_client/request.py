"""Turns what callers give into calls, and raw answers into results."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from fcn_client.errors import FcnError, InvalidInput
from fcn_client.images import read_answer
from fcn_client.types import (
    Call,
    Outcome,
    RawReply,
    SegmentOptions,
    SegmentResult,
    StreamResult,
)

I = TypeVar("I")  # noqa: E741

REST_SCHEMES: Final = ("http", "https")
GRPC_SCHEMES: Final = ("grpc", "grpcs")
_OPTIONS: Final = frozenset(SegmentOptions.__annotations__)
_KEY: Final = re.compile(r"[!-~]+")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def is_grpc(url: str) -> bool:
    """Tells gRPC's addresses from REST's. Raises: InvalidInput for a scheme that is neither's."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # raises where it is no number
    except ValueError as error:
        raise InvalidInput(f"{url!r} is no server's address: {error}") from error
    if parts.scheme not in (*REST_SCHEMES, *GRPC_SCHEMES) or not parts.netloc:
        raise InvalidInput(
            f"{url!r} is no server's address: use http://host:8000 or grpc://host:8001"
        )
    return parts.scheme in GRPC_SCHEMES


def is_this_machine(url: str) -> bool:
    """Tells whether the address is this machine's own, to which no proxy leads, whatever
    `http_proxy` says."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_loopback or ip.is_unspecified


def at_ip(url: str, ip: str) -> str:
    """Returns the address with `ip` in place of the host's name."""
    parts = urlsplit(url)
    host = f"[{ip}]" if ":" in ip else ip
    return parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host).geturl()


def headers_of(headers: Mapping[str, str] | None, api_key: str | None) -> dict[str, str]:
    """Returns what every request sends. Raises: InvalidInput, which does not repeat the key."""
    sent = dict(headers or {})
    if api_key is not None:
        if not _KEY.fullmatch(api_key):
            raise InvalidInput(
                "the API key is empty or has characters that cannot be sent: give it "
                "without spaces and line ends"
            )
        sent["Authorization"] = f"Bearer {api_key}"
    return sent


def total_s(options: SegmentOptions, timeout_s: float) -> float:
    """Returns the seconds for the whole request. Raises: InvalidInput."""
    deadline_ms = options.get("deadline_ms")
    if deadline_ms is None:
        return timeout_s
    if not deadline_ms >= 1:
        raise InvalidInput(f"deadline_ms is {deadline_ms}: give 1 or more")
    return deadline_ms / 1000


def call_of(image: bytes, output: str, options: SegmentOptions) -> Call:
    """Makes the call, its times still to be set by `within`. Raises: InvalidInput."""
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise InvalidInput(
            f"there is no option {', '.join(unknown)}: use {', '.join(sorted(_OPTIONS))}"
        )
    request_id = options.get("request_id") or secrets.token_hex(16)
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidInput(
            f"request_id {request_id!r}: use 1 to 128 of the characters A-Z a-z 0-9 . _ : -"
        )
    return Call(
        image=image,
        output=output,
        model=options.get("model"),
        version=options.get("version"),
        classes=_classes(options.get("classes", ())),
        alpha=options.get("alpha"),
        outlines=options.get("outlines"),
        dtype=options.get("dtype"),
        priority=options.get("priority"),
        # A server of before knows of no scale, and is not told what is the default.
        scale=None if (scale := options.get("scale")) == "auto" else scale,
        request_id=request_id,
        deadline_s=0.0 if options.get("deadline_ms") is not None else None,
        timeout_s=0.0,
    )


def within(call: Call, left_s: float) -> Call:
    """Returns the call with the time that is left for it."""
    deadline_s = None if call.deadline_s is None else left_s
    return replace(call, deadline_s=deadline_s, timeout_s=left_s)


def result_of(output: str, reply: RawReply, attempts: int) -> SegmentResult[Any]:
    """Reads an answer. Raises: DecodeError."""
    return SegmentResult(
        value=read_answer(output, reply.media_type, reply.body),
        output=output,
        body=reply.body,
        media_type=reply.media_type,
        model=reply.model,
        version=reply.version,
        request_id=reply.request_id,
        timings=reply.timings,
        attempts=attempts,
        network_size=reply.network_size,
    )


def stream_outcome(output: str, through: StreamResult[I]) -> Outcome[I, Any]:
    """Reads the answer of one image of a stream."""
    if isinstance(through.end, FcnError):
        return Outcome(through.index, through.image, error=through.end)
    try:
        result = result_of(output, through.end, through.attempts)
    except FcnError as error:
        return Outcome(through.index, through.image, error=error)
    return Outcome(through.index, through.image, result)


def check_in_flight(in_flight: int) -> None:
    """Refuses less than one at a time. Raises: InvalidInput."""
    if in_flight < 1:
        raise InvalidInput(f"in_flight is {in_flight}: give 1 or more")


def _classes(classes: Sequence[str | int]) -> tuple[str, ...]:
    """Takes a single name for a list of one, not for its letters."""
    return (classes,) if isinstance(classes, str) else tuple(str(name) for name in classes)
