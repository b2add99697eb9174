"""How many bodies are read at once, how large and how slow; and callers who leave."""

from __future__ import annotations

import asyncio
import threading
from collections import UserList
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from starlette.types import Message, Receive

from service.api import uploads as module
from service.api.uploads import Uploads, chunks, read_raw
from service.errors import Cancelled, Overloaded, UploadTooSlow


def uploads(told: list[str] | None = None, **limits: float) -> Uploads:
    chosen: dict[str, Any] = {"max_count": 2, "max_bytes": 100, "timeout_s": 5.0, **limits}
    return Uploads(**chosen, rejected=(told if told is not None else []).append)


def received(*bodies: bytes, left: bool = False) -> Receive:
    """ASGI's channel: the body in these pieces, and at its end the caller who `left`."""
    messages: list[Message] = [
        {"type": "http.request", "body": body, "more_body": True} for body in bodies
    ]
    messages.append({"type": "http.disconnect" if left else "http.request"})

    async def receive() -> Message:
        return messages.pop(0)

    return receive


async def test_one_upload_too_many_is_refused_unread() -> None:
    told: list[str] = []
    limit = uploads(told)
    with limit.begin(), limit.begin():
        with pytest.raises(Overloaded) as caught:
            limit.begin().__enter__()
        assert caught.value.retry_after_s >= 1
        assert told == ["uploads"]
    with limit.begin():
        assert limit.held == (1, 0)
    assert limit.held == (0, 0)


async def test_bytes_are_counted_while_they_arrive() -> None:
    told: list[str] = []
    limit = uploads(told, max_count=9)
    with limit.begin() as first, limit.begin() as second:
        first(90)
        with pytest.raises(Overloaded):
            async for _ in chunks(received(b"x" * 5, b"x" * 6), second):
                pass
        assert limit.held == (2, 95)
        first(5)
        with pytest.raises(Overloaded):
            limit.begin().__enter__()
    assert limit.held == (0, 0)
    assert told == ["uploads", "uploads"]


@pytest.mark.parametrize("bodies", [(b"x" * 80,) * 3, (b"",), ()], ids=len)
async def test_a_single_upload_always_fits(bodies: Sequence[bytes]) -> None:
    with uploads().begin() as upload:
        assert await read_raw(chunks(received(*bodies), upload), 1000) == b"".join(bodies)


@pytest.mark.parametrize(("inline", "here"), [(9, True), (8, False)])
async def test_a_large_body_is_joined_off_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, inline: int, here: bool
) -> None:
    class Parts(UserList[bytes]):
        def __iter__(self) -> Iterator[bytes]:
            threads.append(threading.get_ident())
            return iter(self.data)

    threads: list[int] = []
    monkeypatch.setattr(module, "INLINE_BYTES", inline)
    assert await module.joined(Parts([b"abc"] * 3)) == b"abc" * 3
    assert (threads[-1] == threading.get_ident()) is here


async def test_a_caller_who_leaves_in_the_middle() -> None:
    limit = uploads()
    with pytest.raises(Cancelled), limit.begin() as upload:
        await read_raw(chunks(received(b"abc", left=True), upload), 1000)
    assert limit.held == (0, 0)


async def test_a_slow_upload_is_given_up() -> None:
    async def trickle() -> Message:
        await asyncio.sleep(0.005)
        return {"type": "http.request", "body": b"x", "more_body": True}

    limit = uploads(timeout_s=0.03, max_bytes=10**6)
    with (
        pytest.raises(UploadTooSlow, match=r"not complete after 0.03 s: send a smaller"),
        limit.begin() as upload,
    ):
        await limit.in_time(read_raw(chunks(trickle, upload), 10**6))
    assert limit.held == (0, 0)


async def test_a_timeout_of_the_readers_own_is_not_ours() -> None:
    async def broken() -> bytes:
        raise TimeoutError("of the reader's own")

    with pytest.raises(TimeoutError, match="of the reader's own"):
        await uploads().in_time(broken())
