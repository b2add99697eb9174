"""Runs an image tile by tile, where whole it would take more memory than there is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.contract import InputSpec
from service.core.batching.policy import InferenceRequest, InferenceResult, Postprocess
from service.core.batching.queue import BatchQueue
from service.core.batching.threads import Pool
from service.core.images.decode import network_pixels
from service.core.images.tiles import Tile, tiles
from service.core.types import UInt8Array

TOO_LARGE: Final = InferenceResult(np.empty((0, 0), np.uint8), 0.0, 0.0, 0)
"""Stands for the result of an image that is too large to be run whole."""


async def run_in_tiles(
    tensor: UInt8Array,
    spec: InputSpec,
    asked: InferenceRequest,
    queue: BatchQueue,
    pool: Pool,
    *,
    put: Callable[..., None],
    max_pixels: int,
    at_once: int,
    postprocess: Postprocess | None,
) -> InferenceResult:
    """Labels an image, uint8 RGB [H,W,3], tile by tile. The result's times are together what passed
    meanwhile: some tile ran, or all waited.

    asked: the whole image's, of whose client and priority the tiles are. put: queues a tile, as
    `BatchQueue.put` does. max_pixels: of one tile. at_once: tiles in the queue at a time, as many
    as there are instances: others' images get their turn in between.
    postprocess: given only where it needs the logits; it returns an
    array [...,h,w].

    Raises: ImageTooLarge, and the first error of any tile, which ends the others.
    """
    height, width = tensor.shape[:2]
    deadline, clock = asked.deadline, pool.clock
    began = clock()
    remaining = iter(tiles(height, width, spec, max_pixels))
    results: list[InferenceResult] = []
    runs: list[tuple[float, float]] = []  # when each began and ended
    wholes: list[npt.NDArray[Any]] = []  # the label map and, if any, what postprocess returned

    async def work() -> None:
        for tile in remaining:
            cut = await pool.run(partial(tile.cut, tensor), deadline)
            # Without room of its own: the image was admitted with all its pixels.
            request = queue.request(deadline, asked.priority, asked.client)
            request.pixels = network_pixels(cut.shape[0], cut.shape[1], spec)
            put(request, cut, postprocess, wants_logits=postprocess is not None)
            result = await queue.result(request)
            runs.append((clock() - result.infer_s - result.postprocess_s, clock()))
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
    passed_s = clock() - began
    running_s = min(passed_s, covered_s(runs))
    infer_s, postprocess_s = (
        sum(each) for each in zip(*((r.infer_s, r.postprocess_s) for r in results), strict=True)
    )
    postprocessing_s = running_s * postprocess_s / max(infer_s + postprocess_s, 1e-9)
    return InferenceResult(
        wholes[0],
        queue_s=passed_s - running_s,
        infer_s=running_s - postprocessing_s,
        batch_size=1,
        postprocessed=wholes[1] if len(wholes) > 1 else None,
        postprocess_s=postprocessing_s,
        started_s=min(result.started_s for result in results),
    )


def covered_s(spans: Iterable[tuple[float, float]]) -> float:
    """Returns the time in which at least one of the spans, (begin, end), lasted."""
    total, until = 0.0, -math.inf
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def _put(tile: Tile, parts: Sequence[npt.NDArray[Any]], wholes: Sequence[npt.NDArray[Any]]) -> None:
    for part, whole in zip(parts, wholes, strict=True):
        tile.put(part, whole)
