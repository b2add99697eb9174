"""TIFFs of every layout, written from TIFF 6.0; tifffile reads back that they are what they say."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, _, LAB = range(9)
COMPRESSED: dict[int, Callable[[Any], Any]] = {
    1: bytes,
    5: imagecodecs.lzw_encode,
    8: zlib.compress,
    32773: imagecodecs.packbits_encode,
    32946: zlib.compress,
    34925: imagecodecs.lzma_encode,
    50000: imagecodecs.zstd_encode,
}
_CODES = {3: "H", 4: "I", 5: "I", 7: "B", 16: "Q"}
Tags = dict[int, tuple[int, Sequence[int]]]
Samples = npt.NDArray[Any]
REVERSED = bytes(int(f"{n:08b}"[::-1], 2) for n in range(256))


@dataclass(frozen=True)
class Layout:
    """How samples [H,W,S] lie in the file; format: 1 unsigned, 2 signed, 3 float."""

    photometric: int = RGB
    bits: int = 8
    extra: tuple[int, ...] = ()
    planar: int = 1
    order: str = "<"
    compression: int = 1
    predictor: int = 1
    part: str = "strip"  # or strips, tiles
    fill: int = 1
    format: int = 1
    big: bool = False
    orientation: int = 1

    def having(self, **changed: Any) -> Layout:
        return replace(self, **changed)

    @property
    def samples(self) -> int:
        return {RGB: 3, YCBCR: 3, LAB: 3, CMYK: 4}.get(self.photometric, 1) + len(self.extra)


def page(samples: Samples, layout: Layout, tags: Tags | None = None) -> tuple[Tags, list[bytes]]:
    """Tags without the places of the parts, and the parts."""
    height, width, count = samples.shape
    rows, columns = {"strip": (height, width), "strips": (7, width), "tiles": (16, 32)}[layout.part]
    planes = [samples] if layout.planar == 1 else [samples[:, :, n, None] for n in range(count)]
    parts = []
    for plane in planes:
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                part = plane[top : top + rows, left : left + columns]
                if layout.part == "tiles":
                    part = np.pad(
                        part,
                        ((0, rows - part.shape[0]), (0, columns - part.shape[1]), (0, 0)),
                        mode="edge",
                    )
                parts.append(_part(part, layout))
    own: Tags = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [layout.bits] * count),
        259: (3, [layout.compression]),
        262: (3, [layout.photometric]),
        277: (3, [count]),
        284: (3, [layout.planar]),
    }
    if layout.part == "tiles":
        own |= {322: (3, [columns]), 323: (3, [rows])}
    else:
        own[278] = (4, [rows])
    if layout.extra:
        own[338] = (3, layout.extra)
    if layout.format != 1:
        own[339] = (3, [layout.format] * count)
    for tag, value in (
        (266, layout.fill),
        (274, layout.orientation),
        (317, layout.predictor),
    ):
        if value != 1:
            own[tag] = (3, [value])
    return own | (tags or {}), parts


def file(pages: Sequence[tuple[Tags, list[bytes]]], order: str = "<", big: bool = False) -> bytes:
    """Pages one after the other."""
    mark = b"II" if order == "<" else b"MM"
    place, entry, inline = ("Q", "HHQ", 8) if big else ("I", "HHI", 4)
    out = bytearray(mark + struct.pack(order + "H", 43 if big else 42))
    if big:
        out += struct.pack(order + "HH", 8, 0)
    link = len(out)
    out += bytes(inline)
    for tags, parts in pages:
        places = []
        for part in parts:
            out += bytes(-len(out) % 8)
            places.append(len(out))
            out += part
        tiled = 322 in tags
        own = tags | {
            324 if tiled else 273: (16 if big else 4, places),
            325 if tiled else 279: (16 if big else 4, [len(part) for part in parts]),
        }
        written = []
        for tag in sorted(own):
            kind, values = own[tag]
            raw = struct.pack(f"{order}{len(values)}{_CODES[kind]}", *values)
            length = len(values) // 2 if kind == 5 else len(values)
            if len(raw) > inline:
                out += bytes(-len(out) % 8)
                raw, value = struct.pack(order + place, len(out)), raw
                out += value
            written.append(struct.pack(order + entry, tag, kind, length) + raw.ljust(inline, b"\0"))
        out += bytes(-len(out) % 8)
        struct.pack_into(order + place, out, link, len(out))
        out += struct.pack(order + ("Q" if big else "H"), len(written)) + b"".join(written)
        link = len(out)
        out += bytes(inline)
    return bytes(out)


def tiff(samples: Samples, layout: Layout, tags: Tags | None = None) -> bytes:
    return file([page(samples, layout, tags)], layout.order, layout.big)


def _part(part: Samples, layout: Layout) -> bytes:
    rows, columns, count = part.shape
    if layout.predictor == 2:
        before = np.concatenate([np.zeros_like(part[:, :1]), part[:, :-1]], axis=1)
        part = (part - before) & part.dtype.type((1 << layout.bits) - 1)
    if part.dtype.kind == "f" or layout.bits in (8, 16, 32, 64):
        kind = {1: "u", 2: "i", 3: "f"}[layout.format]
        raw = part.astype(f"{layout.order}{kind}{layout.bits // 8}").tobytes()
    else:
        shifts = np.arange(layout.bits - 1, -1, -1)
        bits = (part.reshape(rows, -1, 1) >> shifts & 1).astype(np.uint8)
        raw = np.packbits(bits.reshape(rows, -1), axis=1).tobytes()
    raw = bytes(COMPRESSED[layout.compression](raw))
    return raw.translate(REVERSED) if layout.fill == 2 else raw
