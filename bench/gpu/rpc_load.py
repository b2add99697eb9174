"""`bench.load` over gRPC: the same loops and the same numbers, of Segment.

python -m bench.gpu.rpc_load 127.0.0.1:8001 photo.jpg --connections 8 --seconds 5
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence

import grpc

from bench import load
from bench.http_client import NO_ANSWER, Answer
from fcn_client.stubs import segmentation_pb2 as pb
from fcn_client.stubs import segmentation_pb2_grpc as pb_grpc

_STATUS = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""As HTTP would say it; any other failure is no answer."""
_CHANNELS = 4
"""One HTTP/2 connection would be a queue of its own."""
STAGES = ("decode", "queue", "infer", "render")


class RpcClient:
    """As `load.Client`. patience_s: a call's deadline, from when it was due."""

    def __init__(self, target: str, body: bytes, patience_s: float) -> None:
        self._request = pb.SegmentRequest(image=body)
        self._patience_s = patience_s
        options = [
            ("grpc.use_local_subchannel_pool", 1),  # a connection each
            ("grpc.max_receive_message_length", -1),
        ]
        self._channels = [
            grpc.aio.insecure_channel(target, options=options) for _ in range(_CHANNELS)
        ]
        self._stubs = [pb_grpc.SegmentationStub(channel) for channel in self._channels]
        self._turn = 0
        self._began = 0.0
        self._asked: set[asyncio.Task[Answer]] = set()

    def begin(self) -> None:
        self._began = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._began

    def call_later(self, wait_s: float, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(wait_s, callback)

    def ask(self, due_s: float, done: Callable[[Answer], None]) -> None:
        task = asyncio.get_running_loop().create_task(self.answer(due_s))
        self._asked.add(task)

        def answered(task: asyncio.Task[Answer]) -> None:
            self._asked.discard(task)
            done(task.result())

        task.add_done_callback(answered)

    async def answer(self, due_s: float) -> Answer:
        sent = self.now()
        self._turn += 1
        stub = self._stubs[self._turn % len(self._stubs)]
        status, timing = load.OK, b""
        try:
            reply = await stub.Segment(
                self._request, timeout=max(0.001, self._patience_s - (sent - due_s))
            )
            timing = load.timing_of({s: getattr(reply.timings, f"{s}_s") * 1e3 for s in STAGES})
        except grpc.aio.AioRpcError as error:
            status = _STATUS.get(error.code(), NO_ANSWER)
        return Answer(due_s, sent, self.now(), status, timing=timing)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)


def main(words: Sequence[str] | None = None) -> int:
    args = load.arguments(__doc__, "python -m bench.gpu.rpc_load").parse_args(words)
    body = args.body.read_bytes()

    async def run() -> dict[str, object]:
        client = RpcClient(args.url, body, args.patience)
        finished: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        try:
            meter = load.offer(args, client, finished.set_result)
            return load.report(args, await finished, meter.cpu_s())
        finally:
            await client.close()

    print(json.dumps(asyncio.run(run())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
