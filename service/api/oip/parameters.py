"""Reads the parameters of a request of the Open Inference Protocol into `SegmentOptions`.

Those that are not known are ignored, as the protocol has it: proxies and clients add their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from service.api.call import MAX_DEADLINE_MS
from service.api.oip.tensors import rendering, scores_asked
from service.core.types import Priority, SegmentOptions, SegmentReply, scale_of
from service.errors import InvalidParameter, quoted

PRIORITIES: Final = {
    0: Priority.NORMAL,
    1: Priority.HIGH,
    2: Priority.NORMAL,
    3: Priority.LOW,
}
"""Triton's levels: 1 goes first, 0 is the default."""
_MOST: Final = 1e15


def segment_options(
    model: str,
    version: str,
    outputs: tuple[str, ...],
    parameters: Mapping[str, object],
    deadline_s: float,
) -> SegmentOptions:
    """Reads what is asked for. deadline_s: unless `timeout`, in microseconds, is shorter.

    Raises: InvalidParameter.
    """
    timeout_us = _number(parameters, "timeout", 0)
    if not 0 <= timeout_us <= 1000 * MAX_DEADLINE_MS:
        raise InvalidParameter(
            f"timeout is {timeout_us:g}: send microseconds, {1000 * MAX_DEADLINE_MS} at most"
        )
    priority = _number(parameters, "priority", 0)
    if priority not in PRIORITIES:
        raise InvalidParameter(f"priority is {priority:g}: use 1 (high), 2 (normal) or 3 (low)")
    scale = parameters.get("scale")
    if isinstance(scale, float) and scale.is_integer():
        scale = int(scale)
    return SegmentOptions(
        model=model,
        version=version or None,
        output=rendering(outputs),
        alpha=_number(parameters, "alpha", 0.5),
        scores=scores_asked(outputs),
        deadline_s=min(deadline_s, timeout_us / 1e6) if timeout_us else deadline_s,
        priority=PRIORITIES[int(priority)],
        scale="auto" if scale is None else scale_of(str(scale)),
    )


def size_text(reply: SegmentReply) -> str:
    """Writes the height and width at which the network saw the image, as answers have it."""
    return "{}x{}".format(*reply.network_size)


def refuse_shared_memory(parameters: Any) -> None:
    """Raises: InvalidParameter."""
    if parameters.get("shared_memory_region") is not None:
        raise InvalidParameter("shared memory is not offered: send the tensor in the request")


def flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    """Reads a parameter that is true or false. Raises: InvalidParameter."""
    value = parameters.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise InvalidParameter(f"{name} is {quoted(str(value))}: send true or false")
    return value


def _number(parameters: Mapping[str, object], name: str, default: float) -> float:
    value = parameters.get(name)
    value = default if value is None else value
    if isinstance(value, int | float) and not isinstance(value, bool) and -_MOST < value < _MOST:
        return value
    shown = "too large" if isinstance(value, int) else quoted(str(value))
    raise InvalidParameter(f"{name} is {shown}: send a number")
