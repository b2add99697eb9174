"""The pictures of one request of the Open Inference Protocol, each through the segmenter."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from service.api.oip.tensors import (
    MAX_SCORES_AS_NUMBERS_BYTES,
    MAX_SCORES_BYTES,
    OVERLAY,
    Picture,
)
from service.core.segmenter import Segmenter, SegmentOptions, SegmentReply
from service.errors import DeadlineExceeded, ImageTooLarge, InvalidParameter, Overloaded

WINDOW: Final = 8
"""Pictures of one request that are under way at once: a batch on a GPU. More would only make the
requests of others wait."""


async def segment_all(
    segmenter: Segmenter,
    pictures: Sequence[Picture],
    draft: SegmentOptions,
    outputs: Sequence[str],
    *,
    max_pixels: int,
    as_numbers: bool,
) -> list[SegmentReply]:
    """In the order of `pictures`; the first that fails fails them all.

    draft: the options of each; their deadline is that of all. max_pixels: of all the
    pictures together. as_numbers: whether scores are to be written out, number by number.

    Raises: as `Segmenter.segment`.
    """
    max_bytes = MAX_SCORES_AS_NUMBERS_BYTES if as_numbers else MAX_SCORES_BYTES
    # Each has its share: what all of them would take is known before the first is run.
    draft = replace(draft, max_scores_bytes=max_bytes // len(pictures))
    equal_sizes = any(name != OVERLAY for name in outputs)
    run = _Run(segmenter, pictures, draft, max_pixels, equal_sizes)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(WINDOW, len(pictures))):
                group.create_task(run.work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [run.replies[n] for n in range(len(pictures))]


class _Run:
    def __init__(
        self,
        segmenter: Segmenter,
        pictures: Sequence[Picture],
        draft: SegmentOptions,
        max_pixels: int,
        equal_sizes: bool,
    ) -> None:
        self.replies: dict[int, SegmentReply] = {}
        self._segmenter = segmenter
        self._waiting = iter(enumerate(pictures))
        self._draft = draft
        self._max_pixels = max_pixels
        self._equal_sizes = equal_sizes
        self._ends_s = None if draft.deadline_s is None else time.monotonic() + draft.deadline_s
        self._under_way = 0
        self._next_answer = asyncio.Event()
        self._pixels = 0

    async def work(self) -> None:
        for number, picture in self._waiting:
            reply = await self._segment(picture)
            self._check(reply)
            self.replies[number] = reply

    async def _segment(self, picture: Picture) -> SegmentReply:
        while True:
            options = replace(self._draft, deadline_s=self._left_s())
            next_answer = self._next_answer
            self._under_way += 1
            try:
                reply = await self._segmenter.segment(picture, options)
            except Overloaded:
                # Unless the room is taken by pictures of the same request: it will come back.
                if self._under_way == 1:
                    raise
            else:
                self._next_answer.set()
                self._next_answer = asyncio.Event()
                return reply
            finally:
                self._under_way -= 1
            await next_answer.wait()

    def _left_s(self) -> float | None:
        if self._ends_s is None:
            return None
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(
                "the deadline passed before all pictures were answered: allow more time or send "
                "fewer in one request"
            )
        return left_s

    def _check(self, reply: SegmentReply) -> None:
        """Raises: ImageTooLarge, InvalidParameter."""
        self._pixels += reply.height * reply.width
        if self._pixels > self._max_pixels:
            raise ImageTooLarge(
                f"the pictures of the request have more than {self._max_pixels} pixels together: "
                "send fewer in one"
            )
        first = next(iter(self.replies.values()), reply)
        if self._equal_sizes and (reply.height, reply.width) != (first.height, first.width):
            raise InvalidParameter(
                f"the pictures are {first.height}x{first.width} and {reply.height}x{reply.width} "
                "(height x width), and one tensor of label maps or scores holds one size: send "
                "them one by one"
            )
