"""Inference of the Open Inference Protocol, without a transport: a request's images, each through
the segmenter, and what Triton's clients are told of how long they took."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from service.api.call import Call
from service.api.oip.parameters import segment_options
from service.api.oip.statistics import Statistics
from service.api.oip.tensors import (
    MAX_SCORES_AS_NUMBERS_BYTES,
    MAX_SCORES_BYTES,
    OVERLAY,
    Image,
    InferRequest,
    OutputTensor,
    output_tensors,
)
from service.api.uploads import Received
from service.core.segmenter import Segmenter
from service.core.types import NOBODY, Client, SegmentOptions, SegmentReply
from service.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    InvalidParameter,
    Overloaded,
    ServiceError,
)

T = TypeVar("T")

WINDOW: Final = 8
"""Images of one request that are under way at once: a batch on a GPU. More would only make the
requests of others wait."""
_INLINE_BYTES: Final = 1 << 20
"""Fewer are copied into a reply sooner than a thread is woken."""


class Inference:
    """Answers inference requests; REST and gRPC share one."""

    def __init__(
        self,
        segmenter: Segmenter,
        statistics: Statistics,
        *,
        max_pixels: int,
    ) -> None:
        """max_pixels: of all images of one request together."""
        self._segmenter = segmenter
        self._statistics = statistics
        self._max_pixels = max_pixels

    async def answer(
        self,
        call: Call,
        model: str,
        version: str,
        read: Callable[[], Awaitable[InferRequest]],
        write: Callable[[InferRequest, SegmentReply, Sequence[OutputTensor]], T],
        held: Received,
    ) -> T:
        """Segments what `read` finds in the message, which is here, and has `write` print it.

        held: told how many bytes each image's answer has: they stay until the last is there.

        Raises: any ServiceError but ModelLoadError, and what `read` raises.
        """
        began = time.perf_counter()
        try:
            request = await read()
            options = segment_options(
                model, version, request.outputs, request.parameters, call.seconds_left()
            )
            replies = await segment_all(
                self._segmenter,
                request.images,
                options,
                request.outputs,
                max_pixels=self._max_pixels,
                as_numbers=request.scores_as_numbers,
                client=call,
                held=held,
            )
            call.answered(replies[0])
            tensors = output_tensors(request.outputs, replies)
            if request.binary.issuperset(request.outputs) and _size(tensors) <= _INLINE_BYTES:
                answer = write(request, replies[0], tensors)
            else:
                answer = await asyncio.to_thread(write, request, replies[0], tensors)
        except BaseException:
            with contextlib.suppress(ServiceError):
                found, status = self._segmenter.status(model, version)
                counts = self._statistics[found.name, status.version]
                counts.failed(time.perf_counter() - began)
            raise
        counts = self._statistics[replies[0].model, replies[0].version]
        counts.answered(replies, time.perf_counter() - began)
        return answer


def _size(tensors: Sequence[OutputTensor]) -> int:
    return sum(
        len(item) if isinstance(item, bytes) else item.nbytes
        for tensor in tensors
        for item in tensor.data
    )


async def segment_all(
    segmenter: Segmenter,
    images: Sequence[Image],
    options: SegmentOptions,
    outputs: Sequence[str],
    *,
    max_pixels: int,
    as_numbers: bool,
    client: Client = NOBODY,
    held: Received = lambda n_bytes: None,
) -> list[SegmentReply]:
    """Answers in the order of `images`; the first that fails fails them all.

    options: of each; their deadline is that of all. max_pixels: of all the images together.
    as_numbers: whether scores are to be written out, number by number.

    Raises: as `Segmenter.segment`.
    """
    max_bytes = MAX_SCORES_AS_NUMBERS_BYTES if as_numbers else MAX_SCORES_BYTES
    # Each has its share: what all of them would take is known before the first is run.
    options = replace(options, max_scores_bytes=max_bytes // len(images))
    equal_sizes = any(name != OVERLAY for name in outputs)
    run = _Run(segmenter, images, options, max_pixels, equal_sizes, client, held)
    if len(images) == 1:
        await run.work()
        return [run.replies[0]]
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(WINDOW, len(images))):
                group.create_task(run.work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [run.replies[n] for n in range(len(images))]


class _Run:
    """Segments the images of one request, some at once."""

    def __init__(
        self,
        segmenter: Segmenter,
        images: Sequence[Image],
        options: SegmentOptions,
        max_pixels: int,
        equal_sizes: bool,
        client: Client,
        held: Received,
    ) -> None:
        self.replies: dict[int, SegmentReply] = {}
        self._segmenter = segmenter
        self._waiting = iter(enumerate(images))
        self._options = options
        self._max_pixels = max_pixels
        self._equal_sizes = equal_sizes
        self._client = client
        self._held = held
        self._ends_s = None if options.deadline_s is None else time.monotonic() + options.deadline_s
        self._under_way = 0
        self._next_answer = asyncio.Event()
        self._pixels = 0

    async def work(self) -> None:
        for number, image in self._waiting:
            reply = await self._segment(image)
            self._check(reply)
            scores_bytes = sum(scores.nbytes for scores in reply.scores)
            self._held(len(reply.body) + reply.label_map.nbytes + scores_bytes)
            self.replies[number] = reply

    async def _segment(self, image: Image) -> SegmentReply:
        while True:
            options = replace(self._options, deadline_s=self._left_s())
            next_answer = self._next_answer
            self._under_way += 1
            try:
                reply = await self._segmenter.segment(image, options, self._client)
            except Overloaded:
                # Unless the room is taken by images of the same request: it will come back.
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
                "the deadline passed before all images were answered: allow more time or send "
                "fewer in one request"
            )
        return left_s

    def _check(self, reply: SegmentReply) -> None:
        """Raises: ImageTooLarge, InvalidParameter."""
        self._pixels += reply.height * reply.width
        if self._pixels > self._max_pixels:
            raise ImageTooLarge(
                f"the images of the request have more than {self._max_pixels} pixels together: "
                "send fewer in one"
            )
        first = next(iter(self.replies.values()), reply)
        if self._equal_sizes and (reply.height, reply.width) != (first.height, first.width):
            raise InvalidParameter(
                f"the images are {first.height}x{first.width} and {reply.height}x{reply.width} "
                "(height x width), and one tensor of label maps or scores holds one size: send "
                "them one by one"
            )
