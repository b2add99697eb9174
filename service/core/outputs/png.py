"""Writes PNG files, the label map itself among them, for what is alike in one is known here.

Every row is stored as its difference to the row above (filter type 2), which in a label map is
zero nearly everywhere; ISA-L then packs the zeros ten times as fast as Pillow's zlib, in fewer
bytes (bench/LOG.md). Source: PNG specification, third edition, sections 5, 9 and 11.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from isal import isal_zlib

from service.core.outputs.registry import PNG, OutputFormat
from service.core.types import UInt8Array

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE = 0, 2, 3
"""Kinds of pixels, as the format counts them."""
UP: Final = 2
_LEVEL: Final = 1  # of 0..3; 3 takes eight times as long for 3 % fewer bytes


def label_map_png(label_map: UInt8Array, palette: UInt8Array) -> bytes:
    """Packs an 8-bit palette PNG: a pixel's value is its class id, 255 is void.

    label_map: uint8 [H,W]. palette: RGB uint8 [256,3], written whole.
    """
    return png(label_map.shape, PALETTE, differences(label_map), palette.tobytes())


def gray_png(values: UInt8Array) -> bytes:
    """Packs an 8-bit gray PNG of uint8 [H,W]."""
    return png(values.shape, GRAY, differences(values))


def rgb_png(size: tuple[int, int], blocks: Iterable[UInt8Array]) -> bytes:
    """Packs an RGB PNG of `size`, (height, width), from its rows, some at a time: uint8 [h,W,3]."""
    packer = isal_zlib.compressobj(_LEVEL)
    packed = []
    above = np.zeros(3 * size[1], np.uint8)
    for block in blocks:
        rows = block.reshape(len(block), -1)
        packed.append(packer.compress(differences(rows, above)))
        above = rows[-1]
    packed.append(packer.flush())
    return _file(size, RGB, packed)


def differences(values: UInt8Array, above: UInt8Array | None = None) -> UInt8Array:
    """Turns uint8 [H,B] into uint8 [H,1+B]: the filter type, then the row less the row above.

    above: uint8 [B], the row above the first; None for zeros, as the format has it.
    """
    height, row_bytes = values.shape
    rows = np.empty((height, 1 + row_bytes), np.uint8)
    rows[:, 0] = UP
    np.subtract(values[0], 0 if above is None else above, out=rows[0, 1:])
    np.subtract(values[1:], values[:-1], out=rows[1:, 1:])
    return rows


def png(size: tuple[int, ...], kind: int, rows: UInt8Array, palette: bytes = b"") -> bytes:
    return _file(size, kind, [isal_zlib.compress(rows, _LEVEL)], palette)


def _file(size: tuple[int, ...], kind: int, packed: Sequence[bytes], palette: bytes = b"") -> bytes:
    height, width = size
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"".join(
        (
            _SIGNATURE,
            *_chunk(b"IHDR", header),
            *(_chunk(b"PLTE", palette) if palette else ()),
            *_chunk(b"IDAT", *packed),
            *_chunk(b"IEND"),
        )
    )


def _chunk(name: bytes, *pieces: bytes) -> tuple[bytes, ...]:
    check = isal_zlib.crc32(name)
    for piece in pieces:
        check = isal_zlib.crc32(piece, check)
    n_bytes = sum(map(len, pieces))
    return struct.pack(">I", n_bytes), name, *pieces, struct.pack(">I", check)


OUTPUT = OutputFormat(
    "label_map",
    PNG,
    lambda reply: label_map_png(reply.label_map, reply.palette),
    answers_media_type=True,
    is_quick=True,
)
