"""Writes the label map as an 8-bit palette PNG, whose pixels are class ids."""

from __future__ import annotations

from service.core.outputs.png import PALETTE, differences, png
from service.core.outputs.registry import PNG, OutputFormat, Segmentation
from service.core.types import UInt8Array


def label_map_png(label_map: UInt8Array, palette: UInt8Array) -> bytes:
    """Packs an 8-bit palette PNG: a pixel's value is its class id, 255 is void.

    label_map: uint8 [H,W]. palette: RGB uint8 [256,3], written whole.
    """
    return png(label_map.shape, PALETTE, differences(label_map), palette.tobytes())


def _encode(answer: Segmentation) -> bytes:
    return label_map_png(answer.label_map, answer.palette)


OUTPUT = OutputFormat("label_map", PNG, _encode, answers_media_type=True, is_quick=True)
