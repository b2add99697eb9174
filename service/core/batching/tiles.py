"""Runs an image tile by tile, where whole it would take more memory than there is."""

from __future__ import annotations

import asyncio
from functools import partial

from model.contract import InputSpec
from service.core.batching.policy import InferenceResult, Postprocess
from service.core.batching.queue import BatchQueue
from service.core.batching.threads import Pool
from service.core.images.tiles import Mosaic
from service.core.types import Priority, UInt8Array


async def run_in_tiles(
    tensor: UInt8Array,
    spec: InputSpec,
    queue: BatchQueue,
    pool: Pool,
    *,
    max_pixels: int,
    at_once: int,
    deadline: float | None,
    priority: Priority,
    postprocess: Postprocess | None,
) -> InferenceResult:
    """Labels an image, uint8 RGB [H,W,3], tile by tile.

    max_pixels: of one tile. at_once: as many as there are instances, so that others' images get
    their turn in between. postprocess: only of logits, which it needs; it makes an array [...,h,w].

    Raises: ImageTooLarge, and the first error of any tile, which ends the others.
    """
    mosaic = Mosaic(tensor, spec, max_pixels)
    remaining = iter(mosaic.tiles)
    results: list[InferenceResult] = []

    async def work() -> None:
        for tile in remaining:
            cut = await pool.run(partial(mosaic.cut, tile), deadline)
            # Without room of its own: the image was admitted with all its pixels.
            request = queue.request(deadline, priority)
            queue.put(request, cut, postprocess, wants_logits=postprocess is not None)
            result = await queue.result(request)
            place = mosaic.placing(tile, result.label_map, result.postprocessed)
            await pool.run(place, deadline)
            results.append(result)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return InferenceResult(
        mosaic.label_map,
        queue_s=sum(result.queue_s for result in results),
        infer_s=sum(result.infer_s for result in results),
        batch_size=1,
        postprocessed=mosaic.scores,
        postprocess_s=sum(result.postprocess_s for result in results),
    )
