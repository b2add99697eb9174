"""A picture's size from the first bytes of its file, in microseconds and without decoding.

For admission only, which runs on the event loop: it is an estimate of what the picture will cost.
What may be decoded is decided by `service.core.images.decode`, from the same header and for good.
"""

from __future__ import annotations

import struct
from typing import Final

# A file of more segments before its size, or more entries, is not worth the event loop's time.
_MAX_STEPS: Final = 256
# Start of frame, any coding; C4, C8 and CC are other segments. Source: ITU-T T.81, table B.1.
_SOF: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257


def pixels(body: bytes) -> int | None:
    """Height times width; None when the header does not say it soon enough."""
    try:
        size = _size(body)
    except (struct.error, IndexError):
        return None
    return None if size is None else max(0, size[0]) * max(0, size[1])


def _size(body: bytes) -> tuple[int, int] | None:
    """(height, width) as stored, before any EXIF orientation."""
    if body.startswith(b"\xff\xd8\xff"):
        return _jpeg(body)
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack_from(">II", body, 16)
        return height, width
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return _webp(body)
    if body.startswith(b"BM"):
        (header_bytes,) = struct.unpack_from("<I", body, 14)
        if header_bytes == 12:  # OS/2
            width, height = struct.unpack_from("<HH", body, 18)
            return height, width
        width, height = struct.unpack_from("<ii", body, 18)
        return abs(height), width  # negative: the rows go down
    if body[:4] in (b"II*\x00", b"MM\x00*"):
        return _tiff(body, "<" if body.startswith(b"II") else ">")
    return None


def _jpeg(body: bytes) -> tuple[int, int] | None:
    at = 2
    for _ in range(_MAX_STEPS):
        if body[at] != 0xFF:
            return None
        marker = body[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _SOF:
            height, width = struct.unpack_from(">HH", body, at + 5)
            return height, width
        (length,) = struct.unpack_from(">H", body, at + 2)
        at += 2 + length
    return None


def _webp(body: bytes) -> tuple[int, int] | None:
    match body[12:16]:
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", body, 26)
            return height & 0x3FFF, width & 0x3FFF
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", body, 21)
            return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
        case b"VP8X":
            low = struct.unpack_from("<HBHB", body, 24)
            return (low[2] | low[3] << 16) + 1, (low[0] | low[1] << 16) + 1
    return None


def _tiff(body: bytes, order: str) -> tuple[int, int] | None:
    (at,) = struct.unpack_from(order + "I", body, 4)
    (entries,) = struct.unpack_from(order + "H", body, at)
    found: dict[int, int] = {}
    for n in range(min(entries, _MAX_STEPS)):
        tag, kind = struct.unpack_from(order + "HH", body, at + 2 + 12 * n)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT):
            (found[tag],) = struct.unpack_from(
                order + ("H" if kind == 3 else "I"), body, at + 10 + 12 * n
            )
    if len(found) < 2:
        return None
    return found[_TIFF_HEIGHT], found[_TIFF_WIDTH]
