"""Speaks gRPC `SegmentStream`: one call takes images at any time, and answers as they are ready."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from fcn_client.errors import FcnConnectionError, FcnError
from fcn_client.grpc_messages import (
    REQUEST_ID,
    Answered,
    Ended,
    Metadata,
    item_of,
    opening_of,
    outcome_of,
    stream_failure,
)
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc
from fcn_client.tasks import Background, Queue
from fcn_client.types import Call


class AsyncGrpcStream:
    """Represents one call. `answered` and `ended` are called while others run, `ended` once."""

    def __init__(
        self,
        stub: pb_grpc.SegmentationStub,
        metadata: Metadata,
        window: int,
        answered: Answered,
        ended: Ended,
    ) -> None:
        self._request_id = dict(metadata)[REQUEST_ID]
        self._answered, self._ended = answered, ended
        self._outgoing: Queue[pb.SegmentStreamRequest | None] = Queue()
        self._outgoing.put(opening_of(window))
        self._closed = False
        self._call: Any = stub.SegmentStream(self._requests(), metadata=metadata)
        self._receiving = Background(self._receive, "fcn-client-stream")

    def send(self, id: str, call: Call) -> None:
        self._outgoing.put(item_of(id, call))

    def close(self) -> None:
        """Drops what has no answer yet; `ended` is not called any more."""
        self._closed = True
        self._receiving.cancel()
        self._outgoing.put(None)
        self._call.cancel()

    async def _requests(self) -> AsyncIterator[pb.SegmentStreamRequest]:
        while (message := await self._outgoing.get()) is not None:
            yield message

    async def _receive(self) -> None:
        try:
            async for answer in self._call:
                self._answered(answer.id, outcome_of(answer, self._request_id))
            error: FcnError = FcnConnectionError(
                "the server ended the stream before all answers were there"
            )
        except grpc.RpcError as raised:
            error = stream_failure(raised, self._request_id)
        self._outgoing.put(None)
        if not self._closed:
            self._ended(error)
