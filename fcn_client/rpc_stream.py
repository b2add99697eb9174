"""gRPC `SegmentStream`: one call, pictures in at any time, answers out as they come."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from queue import SimpleQueue
from typing import Any, Final, TypeAlias

import grpc

from fcn_client.errors import FcnError, Unreachable
from fcn_client.messages import REQUEST_ID, failure, item_of, outcome_of
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc
from fcn_client.types import Call, RawReply

Answered: TypeAlias = Callable[[str, RawReply | FcnError], None]
"""Told a picture's id, and what became of it."""
Ended: TypeAlias = Callable[[FcnError], None]
"""Told once why there will be no more answers; not after `close`."""


# What grpc.aio says where a write failed before it had the server's own status, which is then lost.
# A new call will tell: a key that is not taken comes to light at the second or third.
_LOST_STATUS: Final = "Internal error from Core"


class GrpcStream:
    """`answered` and `ended` are called on a thread of its own."""

    def __init__(
        self,
        stub: pb_grpc.SegmentationStub,
        metadata: tuple[tuple[str, str], ...],
        window: int,
        answered: Answered,
        ended: Ended,
    ) -> None:
        self._metadata, self._answered, self._ended = metadata, answered, ended
        self._outgoing: SimpleQueue[pb.SegmentStreamRequest | None] = SimpleQueue()
        self._outgoing.put(_opening(window))
        self._closed = False
        self._call: Any = stub.SegmentStream(iter(self._outgoing.get, None), metadata=metadata)
        threading.Thread(target=self._receive, name="fcn-client-stream", daemon=True).start()

    def send(self, id: str, call: Call) -> None:
        self._outgoing.put(item_of(id, call))

    def close(self) -> None:
        """Drops what has no answer yet."""
        self._closed = True
        self._outgoing.put(None)
        self._call.cancel()

    def _receive(self) -> None:
        request_id = _request_id(self._metadata)
        try:
            for answer in self._call:
                self._answered(answer.id, outcome_of(answer, request_id))
            error = _early()
        except grpc.RpcError as raised:
            error = failure(raised, request_id)
        self._outgoing.put(None)
        if not self._closed:
            self._ended(error)


class AsyncGrpcStream:
    """`answered` and `ended` are called in a task of its own."""

    def __init__(
        self,
        stub: pb_grpc.SegmentationStub,
        metadata: tuple[tuple[str, str], ...],
        window: int,
        answered: Answered,
        ended: Ended,
    ) -> None:
        self._metadata, self._answered, self._ended = metadata, answered, ended
        self._outgoing: asyncio.Queue[pb.SegmentStreamRequest | None] = asyncio.Queue()
        self._outgoing.put_nowait(_opening(window))
        self._call: Any = stub.SegmentStream(self._requests(), metadata=metadata)
        self._receiving = asyncio.create_task(self._receive())

    def send(self, id: str, call: Call) -> None:
        self._outgoing.put_nowait(item_of(id, call))

    def close(self) -> None:
        """Drops what has no answer yet."""
        self._receiving.cancel()
        self._outgoing.put_nowait(None)
        self._call.cancel()

    async def _requests(self) -> AsyncIterator[pb.SegmentStreamRequest]:
        while (message := await self._outgoing.get()) is not None:
            yield message

    async def _receive(self) -> None:
        request_id = _request_id(self._metadata)
        try:
            async for answer in self._call:
                self._answered(answer.id, outcome_of(answer, request_id))
            error = _early()
        except grpc.RpcError as raised:
            error = failure(raised, request_id)
            if raised.code() is grpc.StatusCode.INTERNAL and raised.details() == _LOST_STATUS:
                error = Unreachable("the call broke off while it was written to")
        self._outgoing.put_nowait(None)
        self._ended(error)


def _opening(window: int) -> pb.SegmentStreamRequest:
    """Never `ordered`: a picture that must be sent again would lose its place anyway."""
    return pb.SegmentStreamRequest(options=pb.StreamOptions(window=window))


def _request_id(metadata: tuple[tuple[str, str], ...]) -> str:
    return dict(metadata)[REQUEST_ID]


def _early() -> FcnError:
    return Unreachable("the server ended the stream before all answers were there")
