"""Shows the classes' colours as an RGB PNG."""

from __future__ import annotations

import numpy as np

from service.core.outputs.png import RGB, UP, png
from service.core.outputs.registry import PNG, OutputFormat
from service.core.types import UInt8Array


def color_png(label_map: UInt8Array, palette: UInt8Array) -> bytes:
    """Packs the classes' colours; void is what the palette says, black."""
    height, width = label_map.shape
    labels = np.ascontiguousarray(label_map).ravel()
    # The colours themselves are never made: only where a label differs from the one above is a
    # difference other than zero.
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 0] = UP
    rows[0, 1:] = palette[labels[:width]].ravel()
    changed = np.flatnonzero(labels[width:] != labels[:-width])
    differences = palette[labels[changed + width]] - palette[labels[changed]]
    flat = rows.ravel()
    at = (changed // width + 1) * (1 + 3 * width) + 1 + 3 * (changed % width)
    for channel in range(3):
        flat[at + channel] = differences[:, channel]
    return png((height, width), RGB, rows)


OUTPUT = OutputFormat("color", PNG, lambda reply: color_png(reply.label_map, reply.palette))
