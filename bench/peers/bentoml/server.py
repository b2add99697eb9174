"""Serves with BentoML: BENCH_WORKERS processes, or adaptive batching in a service of its own."""

# No `from __future__ import annotations`: BentoML reads the annotations.
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import ContentType
from network import Network, setting
from PIL import Image

Png = Annotated[bytes, ContentType("image/png")]
WORKERS, THREADS, BATCH = setting("WORKERS", 1), setting("THREADS", 1), setting("BATCH", 1)

traffic: dict[str, Any] = {"timeout": 30}
if limit := setting("BOUND"):
    traffic["max_concurrency"] = limit  # answers 429 beyond it

if BATCH > 1:

    @bentoml.service(workers=1, resources={"cpu": THREADS}, traffic={"timeout": 30})
    class Batched:
        def __init__(self) -> None:
            self.network = Network()

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=30_000)
        def run(self, pixels: np.ndarray) -> np.ndarray:
            return self.network.run(pixels)

    @bentoml.service(workers=1, traffic=traffic)
    class Segment:
        batched = bentoml.depends(Batched)

        def __init__(self) -> None:
            self.network = Network()  # for its palette

        @bentoml.api(route="/segment")
        async def segment(self, image: Image.Image, /) -> Png:
            pixels = np.array(image.convert("RGB"))[None]
            (label_map,) = await self.batched.to_async.run(pixels)
            return self.network.encode(np.asarray(label_map, np.uint8))

else:

    @bentoml.service(workers=WORKERS, resources={"cpu": WORKERS * THREADS}, traffic=traffic)
    class Segment:
        def __init__(self) -> None:
            self.network = Network()

        @bentoml.api(route="/segment")
        def segment(self, image: Image.Image, /) -> Png:
            pixels = np.array(image.convert("RGB"))[None]
            return self.network.encode(self.network.run(pixels)[0])
