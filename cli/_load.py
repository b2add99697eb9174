"""Loads a server with images that come when they come, whether or not it keeps up: an open loop.

A request has the time at which it is due, drawn beforehand, and its latency counts from then, sent
late or not. So a server that stalls is charged for everybody who came meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Final

from cli._simulation import percentile
from fcn_client.aio.transport import AsyncTransport
from fcn_client.errors import FcnConnectionError, FcnError, InvalidInput, ServerError
from fcn_client.predict.inputs import find
from fcn_client.request import call_of, headers_of, is_grpc, within
from fcn_client.trust import TlsFiles, trust_of
from fcn_client.types import SegmentOptions, Timings

MOST_IMAGES: Final = 200
"""So many files are held in memory and sent in turn."""
DRAWN_IMAGES: Final = 16
PERCENTS: Final = (50, 90, 95, 99, 99.9)
TIMEOUT: Final = "timeout"
"""Stands for a request whose answer did not come while its client had patience."""


@dataclass(frozen=True, slots=True, order=True)
class Answer:
    """Says what became of a request, in seconds since the start of the load.

    done_s: when its last byte came, or it failed. error: its kind, "" for none. timings: the
    server's own, of one that was answered.
    """

    due_s: float
    sent_s: float
    done_s: float
    error: str = ""
    timings: Timings | None = None

    @property
    def latency_s(self) -> float:
        return self.done_s - self.due_s


class Target:
    """Asks one server for one output, each request once, and leaves the answers encoded."""

    def __init__(
        self, url: str, output: str, options: SegmentOptions, api_key: str | None, files: TlsFiles
    ) -> None:
        """url, api_key, files: see `AsyncFcnClient`. Raises: InvalidInput."""
        self._output, self._options = output, options
        sent = headers_of(None, api_key)
        self._transport: AsyncTransport
        if is_grpc(url):
            from fcn_client.aio.rpc import AsyncGrpcTransport

            self._transport = AsyncGrpcTransport(url, sent, trust_of(url, files))
        else:
            from fcn_client.aio.rest import AsyncRestTransport

            self._transport = AsyncRestTransport(url, sent, trust_of(url, files))

    async def segment(self, image: bytes, timeout_s: float) -> Timings:
        """Waits for the whole answer and returns the server's account of it. Raises: FcnError."""
        deadline_ms = self._options.get("deadline_ms")
        call = call_of(image, self._output, self._options)
        left_s = timeout_s if deadline_ms is None else min(timeout_s, deadline_ms / 1000)
        return (await self._transport.segment(within(call, left_s))).timings

    async def close(self) -> None:
        await self._transport.close()


async def open_loop(
    ask: Callable[[int], Awaitable[Timings]],
    due: Sequence[float],
    *,
    patience_s: float,
    answered: Callable[[], object] = lambda: None,
) -> list[Answer]:
    """Calls `ask` with the number of each request when it is due, and waits for all of them.

    due: seconds, ascending. patience_s: from when one was due; then its client hangs up. answered:
    called after each. Raises: what `ask` raises, but for FcnError, which is an answer's `error`.
    """
    answers: list[Answer] = []
    began = time.perf_counter()

    async def one(number: int, due_s: float) -> None:
        sent_s = time.perf_counter() - began
        timings, error = None, ""
        try:
            async with asyncio.timeout(due_s + patience_s - sent_s):
                timings = await ask(number)
        except FcnError as failure:
            error = kind_of(failure)
        except TimeoutError:
            error = TIMEOUT
        answers.append(Answer(due_s, sent_s, time.perf_counter() - began, error, timings))
        answered()

    async with asyncio.TaskGroup() as tasks:
        for number, due_s in enumerate(due):
            # Also when it is late: the answers must be read meanwhile.
            await asyncio.sleep(max(0.0, due_s - (time.perf_counter() - began)))
            tasks.create_task(one(number, due_s))
    return sorted(answers, key=lambda answer: answer.due_s)


def kind_of(error: FcnError) -> str:
    """Names an error for a table: the last part of a problem's type, where the server has one."""
    if isinstance(error, ServerError):
        return error.kind or (error.code or f"status {error.status}").lower()
    if isinstance(error, TimeoutError):
        return TIMEOUT
    return "no connection" if isinstance(error, FcnConnectionError) else "unreadable answer"


def summary(
    answers: Sequence[Answer], *, since_s: float, until_s: float, target_s: float
) -> dict[str, Any]:
    """Says what became of the requests due in [since_s, until_s): counts, rates per second, ms.

    `share_within_target`: of all that were due, whatever became of the others. `lag_p99_ms`: how
    late they were sent; near the latencies, it is the sender that was measured.
    """
    counted = [answer for answer in answers if since_s <= answer.due_s < until_s]
    good = sorted(answer.latency_s for answer in counted if not answer.error)
    within_target = sum(latency_s <= target_s for latency_s in good)
    span_s = until_s - since_s
    stages = {field.name.removesuffix("_s"): field.name for field in fields(Timings)}
    told = [answer.timings for answer in counted if answer.timings is not None]
    return {
        "sent": len(counted),
        "answered": len(good),
        "within_target": within_target,
        "share_within_target": round(within_target / len(counted), 5) if counted else None,
        "offered_per_s": round(len(counted) / span_s, 3),
        "answered_per_s": round(len(good) / span_s, 3),
        "goodput_per_s": round(within_target / span_s, 3),
        "latency_ms": {**_percentiles(good, PERCENTS), "max": _ms(good[-1]) if good else None},
        "server_ms": {
            stage: _percentiles(sorted(getattr(timings, name) for timings in told), (50, 99))
            for stage, name in stages.items()
        },
        "errors": dict(Counter(answer.error for answer in counted if answer.error).most_common()),
        "lag_p99_ms": _percentiles(sorted(a.sent_s - a.due_s for a in counted), (99,))["p99"],
    }


def _percentiles(values: Sequence[float], percents: Sequence[float]) -> dict[str, float | None]:
    return {f"p{p:g}": _ms(percentile(values, p)) if values else None for p in percents}


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def images_of(path: Path | None, size: tuple[int, int]) -> list[bytes]:
    """Reads the files to send, or draws street scenes.

    path: an image, a video, or a folder of them, of which the first 200 are taken; None to draw.
    size: (height, width) of what is drawn. Raises: InvalidInput.
    """
    if path is None:
        from training.datasets.drawn import jpeg

        return [jpeg(*size, seed) for seed in range(DRAWN_IMAGES)]
    found = []
    for item in islice(find(path).items(), MOST_IMAGES):
        try:
            found.append(item.load())
        except InvalidInput as error:
            raise InvalidInput(f"{item.source}: {error}") from error
    return found
