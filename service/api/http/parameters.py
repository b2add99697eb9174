"""Reads the query parameters and Accept of `POST /segment` into `SegmentOptions`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from service.api.call import MAX_DEADLINE_MS
from service.core.outputs.registry import DEFAULT, all_outputs, output_named
from service.core.types import Dtype, Priority, SegmentOptions, scale_of
from service.errors import InvalidParameter, NotAcceptable, quoted

NAMES: Final = (
    "model", "version", "output", "alpha", "outlines", "dtype", "classes", "priority",
    "deadline_ms", "scale",
)  # fmt: skip
PRIORITIES: Final = {priority.name.lower(): priority for priority in Priority}

FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}

ACCEPTED: Final = {
    output.media_type: output.name for output in all_outputs().values() if output.answers_media_type
}
"""`Accept` may choose these when the query names no output."""


def segment_options(
    query: Sequence[tuple[str, str]], accept: str | None, default_deadline_s: float
) -> SegmentOptions:
    """Reads the options that `query`, in the order sent, decoded, and Accept ask for.

    Raises: InvalidParameter.
    """
    values: dict[str, str] = {}
    classes: list[str] = []
    for name, value in query:
        if name not in NAMES:
            raise InvalidParameter(
                f"there is no parameter {quoted(name)}: use {', '.join(NAMES[:-1])} or {NAMES[-1]}"
            )
        if name == "classes":
            classes += (part.strip() for part in value.split(",") if part.strip())
        elif name in values:
            raise InvalidParameter(f"parameter {name!r} is given twice: give it once")
        else:
            values[name] = value
    output = output_named(values["output"]).name if "output" in values else output_accepted(accept)
    return SegmentOptions(
        model=values.get("model") or None,
        version=values.get("version") or None,
        output=output,
        alpha=_number("alpha", values["alpha"]) if "alpha" in values else 0.5,
        outlines=_flag("outlines", values.get("outlines", "false")),
        dtype=_dtype(values.get("dtype", Dtype.UINT8)),
        classes=tuple(classes),
        deadline_s=_deadline_s(values["deadline_ms"])
        if "deadline_ms" in values
        else default_deadline_s,
        priority=_priority(values["priority"]) if "priority" in values else Priority.NORMAL,
        scale=scale_of(values["scale"]) if "scale" in values else "auto",
    )


def output_accepted(accept: str | None) -> str:
    """Finds the most wanted output of an Accept header; the label map when it does not care.

    Raises: NotAcceptable. Source: RFC 9110 section 12.5.1, for what `fcn` can answer.
    """
    if not accept:
        return DEFAULT
    wanted = {media_type: _quality(accept, media_type) for media_type in ACCEPTED}
    best = max(wanted, key=wanted.__getitem__)  # on a tie the first, image/png
    if wanted[best] <= 0:
        raise NotAcceptable(
            f"cannot answer with {quoted(accept)}: accept {', '.join(list(ACCEPTED)[:-1])} "
            f"or {list(ACCEPTED)[-1]}, "
            "or leave the header out"
        )
    return ACCEPTED[best]


def _quality(accept: str, media_type: str) -> float:
    """Finds the weight of the most specific range that covers `media_type`; 0 when none does."""
    kind = media_type.split("/")[0]
    found: dict[str, float] = {}
    for entry in accept.split(","):
        media_range, *options = (part.strip().lower() for part in entry.split(";"))
        weight = next((o.removeprefix("q=") for o in options if o.startswith("q=")), "1")
        try:
            found[media_range] = float(weight)
        except ValueError:
            found[media_range] = 0.0
    return next((found[r] for r in (media_type, f"{kind}/*", "*/*") if r in found), 0.0)


def _number(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidParameter(f"{name}={quoted(text)} is not a number: use one such as 0.5")
    return number


def _flag(name: str, text: str) -> bool:
    try:
        return FLAGS[text]
    except KeyError:
        raise InvalidParameter(f"{name}={quoted(text)}: use true or false") from None


def _dtype(text: str) -> Dtype:
    try:
        return Dtype(text)
    except ValueError:
        raise InvalidParameter(f"dtype={quoted(text)}: use one of {', '.join(Dtype)}") from None


def _priority(text: str) -> Priority:
    try:
        return PRIORITIES[text]
    except KeyError:
        raise InvalidParameter(
            f"priority={quoted(text)}: use one of {', '.join(PRIORITIES)}"
        ) from None


def _deadline_s(text: str) -> float:
    digits = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_DEADLINE_MS))
    if not digits or not 1 <= int(text) <= MAX_DEADLINE_MS:
        raise InvalidParameter(
            f"deadline_ms={quoted(text)}: use whole milliseconds from 1 to {MAX_DEADLINE_MS}"
        )
    return int(text) / 1000
