"""What becomes of each picture of a stream: sent, answered, sent again, given up, handed out.

No input, output or clock of its own, so that threads and asyncio can share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from fcn_client.errors import FcnError, ImageTooLarge, ServerError, TimedOut, Unreachable
from fcn_client.request import call_of, total_s, within
from fcn_client.retry import GRACE_S, Patience, RetryPolicy
from fcn_client.types import Call, RawReply, SegmentOptions, Settled

I = TypeVar("I")  # noqa: E741

# The same for every picture: the key is wrong, or the server has no streams.
_FOR_ALL: Final = frozenset({401, 403, 501})


@dataclass(slots=True)
class _Pending(Generic[I]):
    """id: on the wire, empty while it waits to be sent. due_s, ends_s: on the clock."""

    index: int
    image: I
    call: Call = field(repr=False)
    patience: Patience
    due_s: float
    id: str = ""
    ends_s: float = 0.0


class Flow(Generic[I]):
    """The pictures between the source and the caller."""

    def __init__(
        self,
        output: str,
        options: SegmentOptions,
        policy: RetryPolicy,
        timeout_s: float,
        ordered: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """As `FcnClient.segment_stream`'s. Raises: UnusableInput."""
        self._total_s = total_s(options, timeout_s)
        self._template = call_of(b"", output, options)
        self.request_id = self._template.request_id
        self._output, self._options = output, options
        self._policy, self._ordered, self._clock = policy, ordered, clock
        self._pending: list[_Pending[I]] = []
        self._settled: dict[int, Settled[I]] = {}
        self._next = 0

    @property
    def idle(self) -> bool:
        """Nothing is waited for and nothing is to be handed out."""
        return not self._pending and not self._settled

    def take(self, index: int, image: I, picture: bytes | FcnError) -> None:
        """A picture of the source, encoded, or why it cannot be."""
        if isinstance(picture, FcnError):
            self._settled[index] = Settled(index, image, picture)
            return
        call = call_of(picture, self._output, self._options)
        patience = Patience(self._policy, self._total_s, clock=self._clock)
        self._pending.append(_Pending(index, image, call, patience, self._clock()))

    def due(self) -> Iterator[tuple[str, Call]]:
        """What is to be sent now, each under an id that was never used before."""
        now = self._clock()
        for picture in [p for p in self._pending if not p.id and p.due_s <= now]:
            try:
                left_s = picture.patience.begin()
            except TimedOut as error:
                self._settle(picture, error)
                continue
            # A late answer to an earlier attempt must not be taken for this one's.
            attempt = picture.patience.attempts
            picture.id = str(picture.index) if attempt == 1 else f"{picture.index}.{attempt}"
            picture.ends_s = now + left_s + GRACE_S
            yield picture.id, within(picture.call, left_s)

    def answered(self, id: str, end: RawReply | FcnError) -> None:
        picture = next((p for p in self._pending if p.id == id), None)
        if picture is None:
            return  # given up since
        if isinstance(end, FcnError):
            self._again(picture, end)
        else:
            self._settle(picture, end)

    def broken(self, error: FcnError) -> None:
        """The stream is over, and with it all that was sent and not answered.

        Raises: `error` where every other picture would meet the same.
        """
        if isinstance(error, ServerError) and error.status in _FOR_ALL:
            raise error
        sent = [p for p in self._pending if p.id]
        if isinstance(error, ImageTooLarge) and sent:
            # One message was above the transport's limit: the largest. The others are blameless.
            culprit = max(sent, key=lambda p: len(p.call.picture))
            self._settle(culprit, error)
            sent.remove(culprit)
            for picture in sent:
                picture.patience.uncount()
                picture.id, picture.due_s = "", self._clock()
            return
        for picture in sent:
            self._again(picture, error)

    def overdue(self) -> bool:
        """Gives up what has had its time. True when the stream is to be left: the server was told
        of the deadline and did not keep it."""
        late = [p for p in self._pending if p.id and p.ends_s <= self._clock()]
        for picture in late:
            error = TimedOut("the server did not answer in the time allowed: allow more")
            error.attempts = picture.patience.attempts
            self._settle(picture, error)
        if late:
            self.broken(Unreachable("the stream was left: its answers did not come in time"))
        return bool(late)

    def wait_s(self) -> float | None:
        """Until something is due or overdue; None where nothing will be."""
        times = [p.ends_s if p.id else p.due_s for p in self._pending]
        return max(0.0, min(times) - self._clock()) if times else None

    def handed_out(self) -> Iterator[Settled[I]]:
        """What is through, in the source's order if that was asked for."""
        while self._settled:
            index = self._next if self._ordered else next(iter(self._settled))
            if index not in self._settled:
                return
            self._next += 1
            yield self._settled.pop(index)

    def _again(self, picture: _Pending[I], error: FcnError) -> None:
        try:
            wait_s = picture.patience.wait_s(error)
        except FcnError as final:
            self._settle(picture, final)
        else:
            picture.id, picture.due_s = "", self._clock() + wait_s

    def _settle(self, picture: _Pending[I], end: RawReply | FcnError) -> None:
        self._pending.remove(picture)
        self._settled[picture.index] = Settled(
            picture.index, picture.image, end, picture.patience.attempts
        )
