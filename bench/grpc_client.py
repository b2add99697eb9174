"""Asks Segment over gRPC for `bench.load`, in the same loops and with the same numbers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import grpc

from bench.http_client import NO_ANSWER, Answer
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc

STAGES = ("decode", "queue", "infer", "render")
_STATUS = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""HTTP's words for it; any other failure is no answer."""
_CHANNELS = 4
"""One HTTP/2 connection would be a queue of its own."""
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # a connection each
    ("grpc.enable_http_proxy", 0),  # the server is measured, without a proxy
    ("grpc.max_receive_message_length", -1),
]


class GrpcClient:
    """Sends one image again and again, over a few channels in turn.

    patience_s: a call's deadline, from when it was due.
    """

    def __init__(self, target: str, body: bytes, patience_s: float) -> None:
        self._target = target
        self._request = pb.SegmentRequest(image=body)
        self._patience_s = patience_s
        self._stubs: list[pb_grpc.SegmentationStub] = []
        self._turn = 0
        self._began = 0.0
        self._asked: set[asyncio.Task[Answer]] = set()

    def run(self, start: Callable[[Callable[[list[Answer]], None]], None]) -> list[Answer]:
        """Lets `start` begin a load, and gives it what to call with the answers at the end."""
        return asyncio.run(self._run(start))

    async def _run(self, start: Callable[[Callable[[list[Answer]], None]], None]) -> list[Answer]:
        finished: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        channels = [
            grpc.aio.insecure_channel(self._target, options=_OPTIONS) for _ in range(_CHANNELS)
        ]
        self._stubs = [pb_grpc.SegmentationStub(channel) for channel in channels]
        try:
            start(finished.set_result)
            return await finished
        finally:
            for channel in channels:
                await channel.close(None)

    def begin(self) -> None:
        self._began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began

    def call_later(self, wait_s: float, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(wait_s, callback)

    def ask(self, due_s: float, done: Callable[[Answer], None]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(due_s))
        self._asked.add(task)

        def answered(task: asyncio.Task[Answer]) -> None:
            self._asked.discard(task)
            done(task.result())

        task.add_done_callback(answered)

    async def _answer(self, due_s: float) -> Answer:
        sent = self.now()
        self._turn += 1
        stub = self._stubs[self._turn % len(self._stubs)]
        status, timing = 200, b""
        try:
            reply = await stub.Segment(
                self._request, timeout=max(0.001, self._patience_s - (sent - due_s))
            )
            timing = ", ".join(
                f"{stage};dur={getattr(reply.timings, f'{stage}_s') * 1e3:.3f}" for stage in STAGES
            ).encode()
        except grpc.aio.AioRpcError as error:
            status = _STATUS.get(error.code(), NO_ANSWER)
        return Answer(due_s, sent, self.now(), status, timing=timing)

    def close(self) -> None:
        """Does nothing: the channels are closed when the load is over."""
