"""Shows how sure the network is of each label, as a gray PNG."""

from __future__ import annotations

import numpy as np

from service.core.outputs.png import gray_png
from service.core.outputs.registry import PNG, OutputFormat
from service.core.outputs.scores import blocks
from service.core.types import Float32Array, UInt8Array


def confidence(
    logits: Float32Array, label_map: UInt8Array, selected: frozenset[int] | None
) -> UInt8Array:
    """Makes uint8 [H,W]: 255 times the probability of the label, rounded; 0 where not selected."""
    values = np.empty(label_map.shape, np.uint8)
    for rows, exponentials, sums in blocks(logits):
        largest = np.maximum.reduce(exponentials, axis=0)
        largest *= np.float32(255)
        largest /= sums
        np.copyto(values[rows], np.rint(largest, out=largest), casting="unsafe")
    if selected is not None:
        table = np.zeros(256, bool)
        table[list(selected)] = True
        values *= table[label_map]
    return values


OUTPUT = OutputFormat(
    "confidence",
    PNG,
    lambda reply: gray_png(reply.scores),
    reduce=lambda logits, label_map, _, selected: confidence(logits, label_map, selected),
)
