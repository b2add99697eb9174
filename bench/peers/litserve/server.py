"""Serves with LitServe: each of its processes decodes, runs and encodes in turn."""

# No `from __future__ import annotations`: LitServe reads the annotation of `decode_request`.
import os
from collections.abc import Sequence
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response
from network import Network, UInt8Array, decode, setting

DEADLINE_S = 0.5
"""LitServe bounds no queue; it gives up on requests that waited this long, when it gets to them."""


class Segment(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.network = Network()

    # Raw bytes, where LitServe by itself would parse a form or JSON.
    def decode_request(self, request: Annotated[bytes, Body()]) -> UInt8Array:
        return decode(request)

    def batch(self, inputs: Sequence[UInt8Array]) -> UInt8Array:
        return np.stack(inputs)

    def predict(self, pixels: UInt8Array) -> UInt8Array:
        return self.network.run(pixels if pixels.ndim == 4 else pixels[None])

    def unbatch(self, output: UInt8Array) -> list[UInt8Array]:
        return list(output)

    def encode_response(self, output: UInt8Array) -> Response:
        label_map = output if output.ndim == 2 else output[0]
        return Response(self.network.encode(label_map), media_type="image/png")


if __name__ == "__main__":
    batch = setting("BATCH", 1)
    server = litserve.LitServer(
        Segment(api_path="/segment", max_batch_size=batch, batch_timeout=0.01 if batch > 1 else 0),
        accelerator="cpu",
        workers_per_device=setting("WORKERS", 1),
        timeout=DEADLINE_S if setting("BOUND") else 30,
        # ZeroMQ between the processes: its documentation's advice for many requests a second.
        fast_queue=os.environ.get("BENCH_FAST_QUEUE") == "1",
    )
    server.run(
        host="127.0.0.1",
        port=setting("PORT"),
        generate_client_file=False,
        log_level="warning",
        num_api_servers=1,
    )
