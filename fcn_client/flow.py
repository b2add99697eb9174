"""Keeps what becomes of each image of a stream: sent, answered, sent again, given up, handed out.

No input, output or clock of its own, so that threads and asyncio can share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from fcn_client.errors import (
    FcnConnectionError,
    FcnError,
    FcnTimeoutError,
    ImageTooLarge,
    ServerError,
)
from fcn_client.request import call_of, total_s, within
from fcn_client.retry import GRACE_S, RetryBudget, RetryPolicy
from fcn_client.types import Call, RawReply, SegmentOptions, StreamResult

I = TypeVar("I")  # noqa: E741

# The same for every image: the key is wrong, or the server has no streams.
_FOR_ALL: Final = frozenset({401, 403, 501})


@dataclass(slots=True)
class _Pending(Generic[I]):
    """Represents an image without its answer.

    id: on the wire, empty while it waits to be sent. due_s, ends_s: on the clock.
    """

    index: int
    image: I
    call: Call = field(repr=False)
    budget: RetryBudget
    due_s: float
    id: str = ""
    ends_s: float = 0.0


class Flow(Generic[I]):
    """Holds the images between the source and the caller."""

    def __init__(
        self,
        output: str,
        options: SegmentOptions,
        policy: RetryPolicy,
        timeout_s: float,
        ordered: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes what `segment_stream` was given. Raises: InvalidInput."""
        self._total_s = total_s(options, timeout_s)
        self._template = call_of(b"", output, options)
        self.request_id = self._template.request_id
        self._output, self._options = output, options
        self._policy, self._ordered, self._clock = policy, ordered, clock
        self._pending: list[_Pending[I]] = []
        self._ready: dict[int, StreamResult[I]] = {}
        self._next = 0

    @property
    def idle(self) -> bool:
        """Tells that nothing is waited for and nothing is to be handed out."""
        return not self._pending and not self._ready

    def take(self, index: int, image: I, body: bytes | FcnError) -> None:
        """Takes an image of the source, encoded, or why it cannot be."""
        if isinstance(body, FcnError):
            self._ready[index] = StreamResult(index, image, body)
            return
        call = call_of(body, self._output, self._options)
        budget = RetryBudget(self._policy, self._total_s, clock=self._clock)
        self._pending.append(_Pending(index, image, call, budget, self._clock()))

    def due(self) -> Iterator[tuple[str, Call]]:
        """Yields what is to be sent now, each under an id that was never used before."""
        now = self._clock()
        for entry in [p for p in self._pending if not p.id and p.due_s <= now]:
            try:
                left_s = entry.budget.begin()
            except FcnTimeoutError as error:
                self._settle(entry, error)
                continue
            # A late answer to an earlier attempt must not be taken for this one's.
            attempt = entry.budget.attempts
            entry.id = str(entry.index) if attempt == 1 else f"{entry.index}.{attempt}"
            entry.ends_s = now + left_s + GRACE_S
            yield entry.id, within(entry.call, left_s)

    def answered(self, id: str, end: RawReply | FcnError) -> None:
        entry = next((p for p in self._pending if p.id == id), None)
        if entry is None:
            return  # given up since
        if isinstance(end, FcnError):
            self._again(entry, end)
        else:
            self._settle(entry, end)

    def broken(self, error: FcnError) -> None:
        """Takes note that the stream is over, and with it all that was sent and not answered.

        Raises: `error` where every other entry would meet the same.
        """
        if isinstance(error, ServerError) and error.status in _FOR_ALL:
            raise error
        sent = [p for p in self._pending if p.id]
        if isinstance(error, ImageTooLarge) and sent:
            # One message was above the transport's limit: the largest. The others are blameless.
            culprit = max(sent, key=lambda p: len(p.call.image))
            self._settle(culprit, error)
            sent.remove(culprit)
            for entry in sent:
                entry.budget.refund()
                entry.id, entry.due_s = "", self._clock()
            return
        for entry in sent:
            self._again(entry, error)

    def overdue(self) -> bool:
        """Gives up what has had its time. True when the stream is to be left: the server was told
        of the deadline and did not keep it."""
        late = [p for p in self._pending if p.id and p.ends_s <= self._clock()]
        for entry in late:
            error = FcnTimeoutError("the server did not answer in the time allowed: allow more")
            error.attempts = entry.budget.attempts
            self._settle(entry, error)
        if late:
            self.broken(FcnConnectionError("the stream was left: its answers did not come in time"))
        return bool(late)

    def wait_s(self) -> float | None:
        """Returns the seconds until something is due or overdue; None where nothing will be."""
        times = [p.ends_s if p.id else p.due_s for p in self._pending]
        return max(0.0, min(times) - self._clock()) if times else None

    def pop_ready(self) -> Iterator[StreamResult[I]]:
        """Yields the results that are settled, in the source's order if that was asked for."""
        while self._ready:
            index = self._next if self._ordered else next(iter(self._ready))
            if index not in self._ready:
                return
            self._next += 1
            yield self._ready.pop(index)

    def _again(self, entry: _Pending[I], error: FcnError) -> None:
        try:
            wait_s = entry.budget.wait_s(error)
        except FcnError as final:
            self._settle(entry, final)
        else:
            entry.id, entry.due_s = "", self._clock() + wait_s

    def _settle(self, entry: _Pending[I], end: RawReply | FcnError) -> None:
        self._pending.remove(entry)
        self._ready[entry.index] = StreamResult(
            entry.index, entry.image, end, entry.budget.attempts
        )
