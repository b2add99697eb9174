"""The flow of SegmentStream alone: window, order, ids, closing. Nothing here takes time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from service.api.grpc.stream import Stream
from service.api.stubs import segmentation_pb2 as pb
from service.errors import InvalidParameter, ShuttingDown

EOF = None


def message(id: str, **fields: Any) -> pb.SegmentStreamRequest:
    return pb.SegmentStreamRequest(id=id, **{"request": pb.SegmentRequest(image=b"x"), **fields})


class Call:
    """A call whose messages, answers and end the test decides."""

    def __init__(self, window: int = 3) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[pb.SegmentStreamResponse] = []
        self.working: dict[str, asyncio.Event] = {}
        self.cancelled: list[str] = []
        self.read = 0
        self.closing = asyncio.Event()
        stream = Stream(self._read, self._write, self._answer, window=window, closing=self.closing)
        self.run = asyncio.create_task(stream.run())

    async def send(self, *messages: Any) -> None:
        for each in messages:
            self.messages.put_nowait(each)
        await self.settled()

    async def settled(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def finish(self, *ids: str) -> None:
        for id in ids:
            self.working[id].set()
            await self.settled()

    @property
    def ids(self) -> list[str]:
        return [response.id for response in self.sent]

    async def _read(self) -> Any:
        got = await self.messages.get()
        self.read += 1
        if isinstance(got, Exception):
            raise got
        return None if got is EOF else (got, got.ByteSize())

    async def _write(self, response: pb.SegmentStreamResponse, turn: Awaitable[None]) -> None:
        await turn
        self.sent.append(response)

    async def _answer(
        self, message: pb.SegmentStreamRequest, fault: InvalidParameter | None
    ) -> pb.SegmentStreamResponse:
        if fault is not None:
            return pb.SegmentStreamResponse(id=message.id, error=pb.ItemError(message=str(fault)))
        done = self.working[message.id] = asyncio.Event()
        try:
            await done.wait()
        except asyncio.CancelledError:
            self.cancelled.append(message.id)
            raise
        return pb.SegmentStreamResponse(id=message.id, response=pb.SegmentResponse())


async def test_answers_go_out_as_they_finish() -> None:
    call = Call()
    await call.send(message("a"), message("b"), message("c"), EOF)
    await call.finish("b", "c", "a")
    await call.run
    assert call.ids == ["b", "c", "a"]


async def test_or_in_the_order_sent() -> None:
    call = Call()
    options = pb.StreamOptions(ordered=True)
    await call.send(message("a", options=options), message("b"), message("c"), EOF)
    await call.finish("c", "b")
    assert call.ids == []
    await call.finish("a")
    await call.run
    assert call.ids == ["a", "b", "c"]


@pytest.mark.parametrize(("asked", "window"), [(None, 3), (0, 3), (2, 2), (1, 1), (9, 3)], ids=str)
async def test_reads_no_further_than_the_window(asked: int | None, window: int) -> None:
    call = Call(window=3)
    if asked is not None:
        await call.send(pb.SegmentStreamRequest(options=pb.StreamOptions(window=asked)))
    read = call.read
    await call.send(*(message(str(n)) for n in range(9)), EOF)
    assert call.read - read == window
    for n in range(9):
        await call.finish(str(n))
        assert call.read - read == min(10, n + 1 + window)
    await call.run
    assert len(call.sent) == 9


async def test_an_unsent_answer_counts_in_the_window() -> None:
    """Else a caller who reads nothing would have the server hold all its answers."""
    call = Call(window=2)
    options = pb.StreamOptions(ordered=True)
    await call.send(message("a", options=options), message("b"), message("c"))
    await call.finish("b")  # ready, and behind a
    assert (call.read, call.ids) == (2, [])
    await call.finish("a")
    assert (call.read, call.ids) == (3, ["a", "b"])
    await call.send(EOF)
    await call.finish("c")
    await call.run


async def test_an_id_in_use_is_refused_until_it_is_answered() -> None:
    call = Call()
    await call.send(message("a"), message("a"))
    assert call.ids == ["a"]
    assert call.sent[0].error.message == (
        "the id 'a' is in use: choose another, or wait for its answer"
    )
    await call.finish("a")
    await call.send(message("a"), EOF)
    await call.finish("a")
    await call.run
    assert [r.WhichOneof("outcome") for r in call.sent] == ["error", "response", "response"]


@pytest.mark.parametrize(
    ("wrong", "id", "words"),
    [
        (message(""), "", "the id is ''"),
        (message("two words"), "", "the id is 'two words'"),
        (message("n" * 129), "", "use 1 to 128"),
        (pb.SegmentStreamRequest(id="b"), "b", "no request"),
        (message("b", options=pb.StreamOptions()), "b", "only the first message"),
        (message("b", deadline_ms=0), "b", "deadline_ms=0"),
        (message("b", deadline_ms=3_600_001), "b", "use 1 to 3600000"),
    ],
)
async def test_a_wrong_message_is_an_answer(
    wrong: pb.SegmentStreamRequest, id: str, words: str
) -> None:
    call = Call()
    await call.send(message("a"), wrong, message("c"), EOF)
    assert call.ids == [id]
    assert words in call.sent[0].error.message
    await call.finish("c", "a")
    await call.run
    assert call.ids == [id, "c", "a"]


async def test_nothing_sent_is_nothing_answered() -> None:
    for first in ([], [pb.SegmentStreamRequest(options=pb.StreamOptions())]):
        call = Call()
        await call.send(*first, EOF)
        await call.run
        assert call.sent == []


async def test_a_message_that_is_none_ends_the_stream() -> None:
    call = Call()
    await call.send(message("a"), InvalidParameter("no message of segmentation.proto"))
    with pytest.raises(InvalidParameter, match=r"segmentation\.proto"):
        await call.run
    assert call.cancelled == ["a"]


async def test_a_caller_who_leaves_cancels_everything() -> None:
    call = Call()
    await call.send(message("a"), message("b"))
    call.run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.run
    assert sorted(call.cancelled) == ["a", "b"]


async def test_a_server_that_closes_answers_what_it_read() -> None:
    call = Call(window=2)
    await call.send(message("a"), message("b"), message("c"))
    call.closing.set()
    await call.finish("b", "a")
    with pytest.raises(ShuttingDown, match="without an answer"):
        await call.run
    assert call.ids == ["b", "a"], "c was not read"


async def test_nor_does_it_wait_for_a_silent_caller() -> None:
    call = Call()
    await call.settled()
    call.closing.set()
    with pytest.raises(ShuttingDown):
        await call.run


async def test_a_closed_stream_ends_well_even_then() -> None:
    call = Call()
    await call.send(message("a"), EOF)
    call.closing.set()
    await call.finish("a")
    await call.run
    assert call.ids == ["a"]
