"""Serves with PyTriton: BENCH_WORKERS instances behind Triton's dynamic batcher.

It is asked in its raw binary form: the request's body is the JPEG
(`Inference-Header-Content-Length: 0`), and the reply holds the PNG after Triton's JSON head.
"""

from __future__ import annotations

import numpy as np
from network import Network, setting
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, QueuePolicy, Tensor, TimeoutAction
from pytriton.triton import Triton, TritonConfig

PORT, BOUND = setting("PORT"), setting("BOUND")
DEADLINE_US = 400_000


def instance():
    network = Network()

    @batch
    def segment(image: np.ndarray) -> dict[str, np.ndarray]:
        pngs = network.segment_batch([bytes(one) for one in image[:, 0]])
        return {"label_map": np.array(pngs, dtype=object)[:, None]}

    return segment


if __name__ == "__main__":
    # Refuses what waited too long and what finds the queue full; unbounded by default.
    policy = QueuePolicy(
        timeout_action=TimeoutAction.REJECT,
        default_timeout_microseconds=DEADLINE_US if BOUND else 0,
        max_queue_size=BOUND,
    )
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=PORT,
        allow_grpc=False,
        allow_metrics=False,
        log_verbose=0,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="segment",
            infer_func=[instance() for _ in range(setting("WORKERS", 1))],
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="label_map", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=setting("BATCH", 1),
                batcher=DynamicBatcher(default_queue_policy=policy),
            ),
        )
        triton.serve()
