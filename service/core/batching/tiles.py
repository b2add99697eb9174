"""Runs an image tile by tile, where whole it would take more memory than there is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract import InputSpec
from service.core.batching.policy import InferenceResult, Postprocess
from service.core.batching.queue import BatchQueue
from service.core.batching.threads import Pool
from service.core.images.decode import network_pixels
from service.core.images.tiles import Tile, tiles
from service.core.types import Priority, UInt8Array


async def run_in_tiles(
    tensor: UInt8Array,
    spec: InputSpec,
    queue: BatchQueue,
    pool: Pool,
    *,
    put: Callable[..., None],
    max_pixels: int,
    at_once: int,
    deadline: float | None,
    priority: Priority,
    client: str,
    postprocess: Postprocess | None,
) -> InferenceResult:
    """Labels an image, uint8 RGB [H,W,3], tile by tile.

    put: queues a tile, as `BatchQueue.put` does. max_pixels: of one tile. at_once: tiles in the
    queue at a time, as many as there are instances: others' images get their turn in between.
    client: whose turns it takes. postprocess: given only where it needs the logits; it returns an
    array [...,h,w].

    Raises: ImageTooLarge, and the first error of any tile, which ends the others.
    """
    height, width = tensor.shape[:2]
    remaining = iter(tiles(height, width, spec, max_pixels))
    results: list[InferenceResult] = []
    wholes: list[npt.NDArray[Any]] = []  # the label map and, if any, what postprocess returned

    async def work() -> None:
        for tile in remaining:
            cut = await pool.run(partial(tile.cut, tensor), deadline)
            # Without room of its own: the image was admitted with all its pixels.
            request = queue.request(deadline, priority, client)
            request.pixels = network_pixels(cut.shape[0], cut.shape[1], spec)
            put(request, cut, postprocess, wants_logits=postprocess is not None)
            result = await queue.result(request)
            parts = [result.label_map]
            if result.postprocessed is not None:
                parts.append(result.postprocessed)
            if not wholes:
                wholes.extend(np.empty((*p.shape[:-2], height, width), p.dtype) for p in parts)
            await pool.run(partial(_put, tile, parts, wholes), deadline)
            results.append(result)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return InferenceResult(
        wholes[0],
        queue_s=sum(result.queue_s for result in results),
        infer_s=sum(result.infer_s for result in results),
        batch_size=1,
        postprocessed=wholes[1] if len(wholes) > 1 else None,
        postprocess_s=sum(result.postprocess_s for result in results),
        started_s=min(result.started_s for result in results),
    )


def _put(tile: Tile, parts: Sequence[npt.NDArray[Any]], wholes: Sequence[npt.NDArray[Any]]) -> None:
    for part, whole in zip(parts, wholes, strict=True):
        tile.put(part, whole)
