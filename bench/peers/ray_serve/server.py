"""Serves with Ray Serve: BENCH_WORKERS replicas in its documented mode for high throughput."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

# Read when Ray is imported.
os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = os.environ.get("BENCH_HAPROXY", "1")
os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"

import ray
from network import Network, setting
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

WORKERS, BATCH, BOUND = setting("WORKERS", 1), setting("BATCH", 1), setting("BOUND")


@serve.deployment(
    num_replicas=WORKERS,
    # Enough at one replica for a batch and the next; more wait in front, at most BOUND of them.
    max_ongoing_requests=max(2, 2 * BATCH) if BOUND else 64,
    max_queued_requests=BOUND or -1,
    ray_actor_options={"num_cpus": 1},
)
class Segment:
    def __init__(self) -> None:
        self.network = Network()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.01)
    async def together(self, bodies: list[bytes]) -> list[bytes]:
        return await asyncio.to_thread(self.network.segment_batch, bodies)

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        if BATCH > 1:
            png = await self.together(body)
        else:
            png = await asyncio.to_thread(self.network.segment, body)
        return Response(png, media_type="image/png")


if __name__ == "__main__":
    ray.init(
        num_cpus=4,  # the controller and the proxy count too
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        logging_level=logging.WARNING,
        _temp_dir=os.environ["BENCH_SCRATCH"],
        runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": setting("PORT")})
    serve.run(Segment.bind(), route_prefix="/segment")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
