"""The first run of each size, before anybody waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.core.types import Network
from service.errors import ModelLoadError


def warm_up(network: Network, sizes: Sequence[tuple[int, int]]) -> None:
    """Every way to run `network` answers one black image of each (height, width).

    The first run of a size allocates, on CUDA tunes and loads kernels, and in OpenVINO compiles:
    better now than on somebody's request.

    Raises: ModelLoadError when the network fails or answers in another shape.
    """
    runs = [*network.instances, *([network.alone] if network.alone else [])]
    for height, width in sizes:
        for run in runs:
            try:
                label_maps = run(np.zeros((1, height, width, 3), np.uint8))
            except Exception as error:
                raise ModelLoadError(
                    f"model {network.contract.model_name} fails on a black {height}x{width} "
                    f"image: {first_line(error)}"
                ) from error
            if label_maps.shape != (1, height, width):
                raise ModelLoadError(
                    f"model {network.contract.model_name} answers a {height}x{width} image with "
                    f"shape {list(label_maps.shape)}, not [1, {height}, {width}]: export it with "
                    "its upsampling to input pixels"
                )


def first_line(error: Exception) -> str:
    """Of a runtime's message, which may go on for pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
