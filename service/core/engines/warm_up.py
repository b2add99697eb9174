"""Runs each shape for the first time before anybody waits for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from model.contract import InputSpec
from service.core.images.decode import padded_side
from service.core.types import Clock, Instance, Network
from service.errors import ModelLoadError

RUN_S: Final = 120.0
"""Longest warm-up run, but for TensorRT: what loops for ever must not hold up other models."""

Shape = tuple[int, int, int]
"""N, height and width of a batch."""


def warm_up(network: Network, sizes: Sequence[tuple[int, int]]) -> None:
    """Has every instance answer one black image of each (height, width).

    The first run of a size allocates, on CUDA tunes and loads kernels, and in OpenVINO compiles:
    better now than on somebody's request.

    Raises: ModelLoadError when the network fails or answers in another shape.
    """
    for size in sizes:
        for instance in network.instances:
            _try(network, instance, (1, *size))


def warm_up_batches(
    network: Network, shapes: Sequence[Shape], seconds: float, clock: Clock
) -> list[Shape]:
    """Has every instance answer batches until the time is over; returns the shapes not come to.

    Raises: ModelLoadError.
    """
    ends = clock() + seconds
    for number, shape in enumerate(shapes):
        if clock() >= ends:
            return list(shapes[number:])
        for instance in network.instances:
            _try(network, instance, shape)
    return []


def ordinary_size(spec: InputSpec, side_px: int = 256) -> tuple[int, int] | None:
    """Finds the (height, width) of a square the model takes, `side_px` if it can; None if none."""
    side = padded_side(side_px, spec)
    if spec.max_side_px is not None and side > spec.max_side_px:
        side = spec.max_side_px - spec.max_side_px % spec.multiple_of_px
        if side < max(1, spec.min_side_px):
            return None
    return side, side


def accepted_sizes(sizes: Sequence[tuple[int, int]], spec: InputSpec) -> list[tuple[int, int]]:
    """Sizes the tensors for images of (height, width), without those the model does not take."""
    padded = [(padded_side(height, spec), padded_side(width, spec)) for height, width in sizes]
    limit = spec.max_side_px
    return list(dict.fromkeys(size for size in padded if limit is None or max(size) <= limit))


def batch_shapes(
    sizes: Sequence[tuple[int, int]], max_batch: int, max_batch_pixels: int
) -> list[Shape]:
    """Lists every batch that images of these sizes can make; of all sizes first the full ones, in
    which images come when there is most to do."""
    found = [
        (count, height, width)
        for count in range(max_batch, 1, -1)
        for height, width in dict.fromkeys(sizes)
        if count * height * width <= max_batch_pixels
    ]
    full: dict[tuple[int, int], Shape] = {}
    for shape in found:
        full.setdefault(shape[1:], shape)
    return list(dict.fromkeys([*full.values(), *found]))


def first_line(error: Exception) -> str:
    """Cuts a runtime's message, which may go on for pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _try(network: Network, instance: Instance, shape: Shape) -> None:
    """Runs a black batch. Raises: ModelLoadError."""
    count, height, width = shape
    images = (
        f"{height}x{width} image" if count == 1 else f"batch of {count} {height}x{width} images"
    )
    black = np.zeros((*shape, 3), np.uint8)
    too_long = threading.Timer(RUN_S, instance.terminate)
    if network.provider != "tensorrt":  # which builds an engine now
        too_long.start()
    try:
        label_maps = instance.run(black)
    except Exception as error:
        why = first_line(error)
        if too_long.finished.is_set():
            why = f"it took longer than {RUN_S:g} s and was ended"
        raise ModelLoadError(
            f"model {network.contract.model_name} fails on a black {images}: {why}"
        ) from error
    finally:
        too_long.cancel()
    if label_maps.shape != shape:
        raise ModelLoadError(
            f"model {network.contract.model_name} answers a {images} with shape "
            f"{list(label_maps.shape)}, not [{count}, {height}, {width}]: export it with its "
            "upsampling to input pixels"
        )
