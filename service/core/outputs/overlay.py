"""Lays the class colours over the image, with or without the borders between the classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.core.outputs.classes import VOID
from service.core.outputs.png import rgb_png
from service.core.outputs.registry import PNG, OutputFormat
from service.core.types import UInt8Array

_BLOCK_PX: Final = 1 << 16
"""Pixels blended at a time: Pillow's copies of them take 0.6 MB, and of a whole upload of two
megapixels 18 MB."""


def overlay_png(
    rgb: UInt8Array,
    label_map: UInt8Array,
    palette: UInt8Array,
    alpha: float,
    *,
    outlines: bool = False,
    background: int | None = None,
) -> bytes:
    """Packs an RGB PNG: (1 - alpha) * upload + alpha * colour, alpha to the nearest 1/255.

    rgb: uint8 [H,W,3]. alpha: 0 (the upload) .. 1 (the colours). Void is untouched, and so is the
    class `background`. outlines: of each other class, the pixels beside another one or void are its
    colour, whatever alpha is.
    """
    drawn = np.ones(256, bool)
    drawn[VOID] = False
    if background is not None:
        drawn[background] = False
    rows = _blended(rgb, label_map, palette, round(alpha * 255), drawn, outlines)
    height, width = label_map.shape
    return rgb_png((height, width), rows)


def _blended(
    rgb: UInt8Array,
    label_map: UInt8Array,
    palette: UInt8Array,
    opacity: int,
    is_drawn: npt.NDArray[np.bool_],
    outlines: bool,
) -> Iterator[UInt8Array]:
    """Yields some rows of the overlay at a time, uint8 [h,W,3].

    opacity: 0..255. is_drawn: whether each of the 256 ids is.
    """
    # Pillow blends with four bytes a pixel and in one pass: a fifth of numpy's time.
    height, width = label_map.shape
    lines = border(label_map).view(np.uint8) if outlines else None
    colors = palette.tobytes()
    step = max(1, _BLOCK_PX // width)
    for top in range(0, height, step):
        rows = slice(top, top + step)
        labels = np.ascontiguousarray(label_map[rows])
        drawn = is_drawn.view(np.uint8)[labels]
        mask = drawn * np.uint8(opacity)
        if lines is not None:
            mask |= drawn * lines[rows] * np.uint8(255)
        colored = Image.fromarray(labels)
        colored.putpalette(colors)
        mixed = Image.fromarray(rgb[rows])
        mixed.paste(colored.convert("RGB"), (0, 0), Image.fromarray(mask))
        yield np.asarray(mixed)


def border(label_map: UInt8Array) -> npt.NDArray[np.bool_]:
    """Marks, bool [H,W], where a pixel above, below, left or right has another label."""
    border = np.zeros(label_map.shape, bool)
    below = label_map[1:] != label_map[:-1]
    border[1:] |= below
    border[:-1] |= below
    beside = label_map[:, 1:] != label_map[:, :-1]
    border[:, 1:] |= beside
    border[:, :-1] |= beside
    return border


OUTPUT = OutputFormat(
    "overlay",
    PNG,
    lambda reply: overlay_png(
        reply.image,
        reply.label_map,
        reply.palette,
        reply.options.alpha,
        outlines=reply.options.outlines,
        # Where classes are chosen, only a background that was named is left: it is asked for.
        background=None if reply.options.classes else reply.contract.background,
    ),
    options=("alpha", "outlines"),
    needs_image=True,
)
